"""What still has excluded patients is listed; pruning removes what is listed and nothing else."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from excluded import LEAVING, data, texts, write_images
from robustness_inputs import write_images as write_prepared
from ruamel.yaml import YAML
from stages import stages

from ral.data.dataset import open_dataset
from ral.data.images.cache import DecodedImageCache
from ral.data.images.file_hashes import FileHashCache
from ral.data.images.shards import write_shard
from ral.errors import UserError
from ral.files import atomic_write
from ral.inference.bank import bank_key
from ral.release.forget_cache import OUTPUTS, cache_folder
from ral.release.forget_places import Place, find_places, prune
from ral.release.forget_traces import Traces, read_leaving

THEIRS, OTHERS = "Person0003", "Person0005"


@pytest.fixture
def traces(tmp_path: Path) -> Traces:
    write_images(tmp_path / "delivered")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/leaving.txt").write_text("\n".join([*LEAVING, "Former0001"]))
    config = data(tmp_path / "delivered", exclude_patients="leaving.txt")
    return Traces.of(read_leaving(config, tmp_path / "project", FileHashCache(None)))


@pytest.fixture
def project(tmp_path: Path, traces: Traces) -> Path:
    return tmp_path / "project"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with a text or a table."""

    def write(name: str, content: "str | pd.DataFrame") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            content.to_parquet(path, index=False)
        return path

    return write


def split(*people: str) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": people, "split": "train"})


def listed(places: list[Place]) -> dict[str, set[str]]:
    """Names of the files, by action."""
    found: dict[str, set[str]] = {}
    for place in places:
        found.setdefault(place.action, set()).update(path.name for path in place.paths)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"image {THEIRS}-0.", True),
        (f'{{"id":"{THEIRS}-0"}}', True),
        (f"bilder/{THEIRS}/{THEIRS}-0.png", True),
        ("Former0001", True),  # no longer in the table
        (f"{OTHERS}-0", False),
        (f"{THEIRS}9 x{THEIRS}", False),  # part of a longer word
        ("", False),
    ],
)
def test_texts(text: str, expected: bool, traces: Traces, put: Callable[..., Path]) -> None:
    assert traces.in_file(put("some/page.html", text)) == expected


def test_tables_and_shards(traces: Traces, put: Callable[..., Path], tmp_path: Path) -> None:
    import numpy as np

    for column in ("patient_id", "whatever"):
        for name, expected in ((THEIRS, True), (OTHERS, False)):
            assert traces.in_file(put("a.parquet", pd.DataFrame({column: [name]}))) == expected
    categories = pd.DataFrame({"who": pd.Categorical([OTHERS, THEIRS])})
    assert traces.in_file(put("b.parquet", categories))
    pixels = np.zeros((1, 2, 2), np.uint8)
    for image, expected in ((f"{THEIRS}-0", True), (f"{OTHERS}-0", False)):
        write_shard(tmp_path / "s.arrow", [image], pixels)
        assert traces.in_file(tmp_path / "s.arrow") == expected
    assert traces.in_file(put("c.parquet", f"damaged {THEIRS}"))
    assert not traces.in_file(tmp_path / "absent.parquet")


def test_short_ids_are_looked_for_in_tables_only(tmp_path: Path, put: Callable[..., Path]) -> None:
    write_images(tmp_path / "delivered")
    put("leaving.txt", "17")
    config = data(tmp_path / "delivered", exclude_patients="leaving.txt")
    traces = Traces.of(read_leaving(config, tmp_path, FileHashCache(None)))
    assert not traces.in_file(put("page.html", "17 images"))
    assert traces.in_file(put("split.parquet", split("17")))


def test_pseudonyms_are_found(tmp_path: Path, put: Callable[..., Path]) -> None:
    write_images(tmp_path / "delivered")
    (tmp_path / "salt").write_bytes(bytes(range(32)))
    put("leaving.txt", THEIRS)
    config = data(tmp_path / "delivered", exclude_patients="leaving.txt", pseudonymise="salt")
    leaving = read_leaving(config, tmp_path, FileHashCache(None))
    traces = Traces.of(leaving)
    theirs, others = leaving.pseudonymizer.ids(pd.Series([f"{THEIRS}-0", f"{OTHERS}-0"]))
    assert traces.in_file(put("page.html", f"image {theirs}"))
    assert not traces.in_file(put("page.html", f"image {others}"))
    assert traces.in_file(put("split.parquet", split(*leaving.pseudonymizer.ids(pd.Series([THEIRS])))))


def test_places_are_listed_and_only_they_are_removed(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces, tmp_path: Path
) -> None:
    import numpy as np

    put("project/runs/old/validation.json", f"{THEIRS}-0")
    put("project/runs/new/validation.json", f"{OTHERS}-0")
    put("project/baseline/split.parquet", split(OTHERS, THEIRS))
    logits = pd.DataFrame({"image_id": [f"{OTHERS}-0", f"{THEIRS}-0"], "Mass": [0.5, 1.5]})
    put("project/baseline/test_logits.parquet", logits)
    put("project/.dvc/tmp/exps/tmp1/data/split.parquet", split(THEIRS))
    put("state/workspaces/nightly/data/prepared/split.parquet", split(THEIRS))
    put("state/workspaces/compare/data/prepared/split.parquet", split(OTHERS))
    for name in ("nightly", "compare"):  # of the images of their prepared data, without names
        put(f"state/workspaces/{name}/data/features/bank.json", "{}")
    put("project/notes.txt", THEIRS)  # the user's own
    cache = DecodedImageCache.open(state, 2, "stretch", "own")
    image = traces_hash(tmp_path)
    for digest in (image, "f" * 64):
        cache.write([digest], np.zeros((1, 2, 2), np.uint8), [("", "")], [""])
    source = texts(tmp_path / "delivered")

    places = find_places(project, state, traces)
    assert listed(places) == {
        "remove": {"old", "tmp1", "prepared", "features", cache.path([image]).name},
        "rewrite": {"split.parquet", "test_logits.parquet"},
    }
    before = texts(project / "runs/new") + texts(state / "workspaces/compare")
    done, size = prune(places, state, traces)
    assert len(done) == len(places)
    assert size > 0
    assert find_places(project, state, traces) == []
    assert texts(project / "runs/new") + texts(state / "workspaces/compare") == before
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(["f" * 64]).name]
    assert (project / "notes.txt").read_text() == THEIRS
    assert pd.read_parquet(project / "baseline/split.parquet").equals(split(OTHERS))
    assert pd.read_parquet(project / "baseline/test_logits.parquet")["image_id"].tolist() == [f"{OTHERS}-0"]
    assert texts(tmp_path / "delivered") == source


def traces_hash(folder: Path) -> str:
    """Content hash of an image that nobody else has."""
    config = data(folder / "delivered", exclude_patients="leaving.txt")
    images = read_leaving(config, folder / "project", FileHashCache(None)).images
    return str(images.set_index("image_id").loc["Person0010-1", "hash"])


def test_nothing_is_removed_while_outputs_have_them(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces
) -> None:
    put("project/runs/old/validation.json", f"{THEIRS}-0")
    put("project/models/logits/test.parquet", pd.DataFrame({"image_id": [f"{THEIRS}-0"]}))
    places = find_places(project, state, traces)
    assert listed(places) == {"manual": {"models"}, "remove": {"old"}}
    with pytest.raises(UserError, match="Run the pipeline first"):
        prune(places, state, traces)
    assert (project / "runs/old").is_dir()


def test_a_run_in_progress_is_not_disturbed(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces
) -> None:
    put("project/runs/old/validation.json", f"{THEIRS}-0")
    path = put("state/workspaces/nightly.run", "one\n")
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in progress in the workspace nightly"):
            prune(find_places(project, state, traces), state, traces)
    assert (project / "runs/old").is_dir()


def test_trainings_go_if_they_are_older_than_the_data(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces
) -> None:
    for name in ("old/state.json", "new/a"):
        put(f"state/training/{name}", "{}")
    os.utime(put("project/data/prepared/dataset.json", "{}"), (100, 100))
    for path in (state / "training/old/state.json", state / "training/old"):
        os.utime(path, (1, 1))
    assert [place.paths[0] for place in find_places(project, state, traces)] == [state / "training/old"]


def test_features_go_unless_they_are_of_a_model_and_data_without_them(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces
) -> None:
    names = {}
    for folder in (project, state / "workspaces/compare"):
        prepared = write_prepared(folder / "data/prepared")
        put(
            f"{(folder / 'models/model.safetensors').relative_to(project.parent)}",
            f"weights of {folder.name}",
        )
        put(f"{(folder / 'models/model.json').relative_to(project.parent)}", "{}")
        key = bank_key(folder / "models", open_dataset(prepared), "float16")
        names[folder.name] = put(f"state/features/{key[:16]}/bank.json", "{}").parent
    # However new: a refit of a model that was trained on them.
    other = put("state/features/0123456789abcdef/bank.json", "{}").parent
    for path in (names["project"] / "bank.json", names["project"]):
        os.utime(path, (1, 1))
    put("state/workspaces/compare/data/prepared/split.parquet", split(THEIRS))
    left = put("state/features/.aaaa.draft/features.npy", "{}").parent  # of a process that was killed
    put("state/features/.bbbb.draft/features.npy", "{}")
    stream = put("state/features/.bbbb.lock", "").open()
    fcntl.flock(stream, fcntl.LOCK_EX)
    features = {
        path for place in find_places(project, state, traces) for path in place.paths if path.parent.name == "features"
    }  # fmt: skip
    assert features == {other, left, names["compare"]}
    stream.close()


def test_names_of_raw_files_stay_while_the_data_folder_has_them(
    project: Path, state: Path, traces: Traces, tmp_path: Path
) -> None:
    config = data(tmp_path / "delivered", exclude_patients="leaving.txt")
    raw = state / "raw"
    for folder in (tmp_path / "delivered/bilder").rglob("*.png"):
        os.utime(folder, (1, 1))  # a file that may still change is not remembered
    read_leaving(config, project, FileHashCache(state))
    assert len(list(raw.iterdir())) == 1
    assert listed(find_places(project, state, traces)).keys() == {"manual"}
    for person in LEAVING:
        shutil.rmtree(tmp_path / "delivered/bilder" / person)
    gone = Traces.of(read_leaving(config, project, FileHashCache(None)))
    prune(find_places(project, state, gone), state, gone)
    assert list(raw.iterdir()) == []


class Cache:
    """Writes objects and runs into a DVC cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, content: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(content).hexdigest() + suffix
        path = self.folder / "files/md5" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    def table(self, table: pd.DataFrame) -> bytes:
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.Table.from_pandas(table), sink)
        return sink.getvalue().to_pybytes()

    def directory(self, **files: bytes) -> str:
        entries = [{"md5": self.put(content), "relpath": name} for name, content in files.items()]
        return self.put(json.dumps(entries).encode(), ".dir")

    def run(self, name: str, deps: dict[str, str], outs: dict[str, str]) -> Path:
        path = self.folder / "runs" / name[:2] / name / "value"
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = {
            key: [{"path": path, "hash": "md5", "md5": md5} for path, md5 in items.items()]
            for key, items in (("deps", deps), ("outs", outs))
        }
        with path.open("w") as stream:
            YAML().dump({"cmd": "exec python -m tasks.x", **listed}, stream)
        return path

    def objects(self) -> set[str]:
        return {
            path.parent.name + path.name for path in (self.folder / "files/md5").rglob("*") if path.is_file()
        }


def test_objects_of_old_runs_only(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces, tmp_path: Path
) -> None:
    cache = Cache(project / ".dvc/cache")
    same = b"the same in both"
    runs, outputs = {}, {}
    for name, people in (("old", (OTHERS, THEIRS)), ("new", (OTHERS,))):
        prepared = cache.directory(**{"split.parquet": cache.table(split(*people)), "counts.json": same})
        weights = cache.put(f"weights of {name}".encode())
        features = cache.directory(**{"features.npy": f"features of {name}".encode(), "bank.json": same})
        runs[name] = [
            cache.run(f"prepare-{name}", {"data/validated": "0" * 32}, {"data/prepared": prepared}),
            cache.run(f"train-{name}", {"data/prepared": prepared}, {"models/model.safetensors": weights}),
            cache.run(f"features-{name}", {"data/prepared": prepared}, {"data/features": features}),
        ]
        outputs[name] = {prepared, weights, features, cache.put(f"features of {name}".encode())}
        outputs[name].add(cache.put(cache.table(split(*people))))
    phantom = cache.put(f"a table with {THEIRS}-0".encode())
    cache.run("phantom", {}, {"data/phantom": phantom})
    own = cache.put(f"{THEIRS}-0, tracked by the user".encode())
    put("project/delivered.dvc", f"outs:\n- md5: {own}\n  path: delivered\n")
    cache.run("odd", {}, {"reports/copy.csv": own})
    (place,) = find_places(project, state, traces)
    assert place.action == "remove"
    everything = cache.objects()
    prune([place], state, traces)
    assert everything - cache.objects() == outputs["old"]
    assert not any(path.exists() for path in runs["old"])
    assert all(path.exists() for path in runs["new"])
    assert find_places(project, state, traces) == []


@pytest.mark.parametrize("lock", ["dvc.lock", "tasks/dvc.lock"])
@pytest.mark.parametrize("committed", [False, True])
def test_what_a_lock_file_names_is_looked_at(
    project: Path, state: Path, put: Callable[..., Path], traces: Traces, lock: str, committed: bool
) -> None:
    """A stage that always runs has no entry in the cache of runs, and what git has is of earlier runs."""
    cache = Cache(project / ".dvc/cache")
    old, new = (cache.put(f'{{"files": "{name}"}}'.encode()) for name in (f"{THEIRS}-0.png", "others.png"))

    def write(md5: str) -> None:
        out = f"{{path: data/manifest.json, md5: {md5}}}"
        put(f"project/{lock}", f"stages: {{manifest: {{outs: [{out}]}}}}\n")

    write(old)
    if committed:
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
        for command in (["init", "-q"], ["add", lock], ["commit", "-qm", "before"]):
            subprocess.run([*git, *command], cwd=project, check=True)
        write(new)
    (place,) = (place for place in find_places(project, state, traces) if place.action == "remove")
    prune([place], state, traces)
    assert cache.objects() == {new}


def test_the_outputs_of_every_stage_are_looked_at() -> None:
    outs = {out for stage in stages().values() for out in stage["outs"]}
    assert {out for out in outs if not any(out == top or out.startswith(f"{top}/") for top in OUTPUTS)} == {
        "data/location.json", "data/user_code.json", "data/phantom"
    }  # fmt: skip


def test_an_interrupted_removal_is_found_again(project: Path, state: Path, traces: Traces) -> None:
    cache = Cache(project / ".dvc/cache")
    prepared = cache.directory(**{"split.parquet": cache.table(split(THEIRS))})
    weights = cache.put(b"weights")
    cache.run("prepare", {}, {"data/prepared": prepared})
    cache.run("train", {"data/prepared": prepared}, {"models/model.safetensors": weights})
    (place,) = find_places(project, state, traces)
    first, *_ = place.paths
    assert first.parent.name + first.name == weights  # the data, by which both are recognized, goes last
    first.unlink()
    (again,) = find_places(project, state, traces)
    assert set(again.paths) == set(place.paths) - {first}


@pytest.mark.parametrize(
    ("config", "local", "expected"),
    [
        ("", "", ".dvc/cache"),
        ("[core]\n    analytics = false\n[cache]\n    dir = /srv/cache\n", "", "/srv/cache"),
        (
            "[cache]\n    dir = ../one\n",
            "['remote \"state\"']\n    url = x\n[cache]\n    dir = ../../two\n",
            "two",
        ),
    ],
)
def test_the_cache_is_where_dvc_has_it(config: str, local: str, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "two/project" if expected == "two" else tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    for name, text in (("config", config), ("config.local", local)):
        with atomic_write(folder / ".dvc" / name) as draft:
            draft.write_text(text)
    wanted = {"/srv/cache": Path("/srv/cache"), "two": tmp_path / "two/two"}.get(
        expected, folder / ".dvc/cache"
    )
    assert cache_folder(folder).resolve() == wanted
