"""What users get wrong ends as one clear error with exit code 1, and leaves no half-written output."""

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, SMALL, set_params

Run = Callable[..., str]
TABLE = "Data_Entry_2017.csv"


@pytest.fixture
def run(fork: Callable[..., subprocess.CompletedProcess[str]], project: Path) -> Run:
    """Run a step in the project and return what it printed; it must exit with `code`."""

    def run(step: str, *arguments: str, code: int = 0, **env: str) -> str:
        return fork(f"tasks.{step}", *arguments, cwd=project, code=code, **env).stdout

    return run


@pytest.fixture
def project(tmp_path: Path, phantom_copy: Path) -> Path:
    """A folder with params.yaml only, set to a phantom folder that a test may damage."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL | {"data": {"root": str(phantom_copy)}})
    return folder


def refuse(run: Run, project: Path, step: str, *words: str, **env: str) -> str:
    """The step must fail with one error that has these words, and leave nothing behind."""
    out = {"validate": "data/validated", "preprocess": "data/prepared"}.get(step, "data/phantom")
    printed = run(step, code=1, **env)
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    for word in words:
        assert word in printed
    assert not (project / out).exists()
    assert not list(project.glob("data/.*"))
    return printed


def rewrite(images: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the label table, keeping its odd header."""
    path = images / TABLE
    header = path.read_text().split("\n")[0]
    table = change(pd.read_csv(path, index_col=False, dtype=str, keep_default_na=False))
    path.write_text(header + "\n" + table.to_csv(index=False, header=False))


def unpack(images: Path) -> None:
    """Turn the archive into an images/ folder, where single images can be damaged."""
    path = images / "images_001.tar.gz"
    with tarfile.open(path) as tar:
        tar.extractall(images, filter="data")
    path.unlink()


def test_missing_folder(run: Run, project: Path) -> None:
    set_params(project, {"data": {"root": "/nowhere/images"}})
    refuse(run, project, "validate", "/nowhere/images does not exist", "data.root")


def test_empty_table(run: Run, project: Path, phantom_copy: Path) -> None:
    rewrite(phantom_copy, lambda table: table.iloc[:0])
    refuse(run, project, "validate", TABLE, "no rows")


def test_absent_column(run: Run, project: Path, phantom_copy: Path) -> None:
    path = phantom_copy / TABLE
    path.write_text(path.read_text().replace("Finding Labels", "Labels", 1))
    refuse(run, project, "validate", TABLE, "lacks the column `Finding Labels`")


def test_label_outside_the_vocabulary(run: Run, project: Path, phantom_copy: Path) -> None:
    rewrite(phantom_copy, lambda table: table.replace({"Finding Labels": {"Mass": "Masses"}}))
    refuse(
        run,
        project,
        "validate",
        TABLE,
        "row ",
        "'Masses'",
        "Allowed, joined by |",
        "data_docs/raw_label_table.html",
    )


def test_absent_images_by_parameter(run: Run, project: Path, phantom_copy: Path) -> None:
    unpack(phantom_copy)
    gone = sorted((phantom_copy / "images").iterdir())[7]
    gone.unlink()
    refuse(
        run,
        project,
        "validate",
        '1 row failed "image is present"',
        gone.name,
        "data.missing_images to drop",
    )
    set_params(project, {"data": {"missing_images": "drop"}})
    run("validate")
    printed = run("preprocess")
    assert "399 images" in printed
    assert "1 excluded: no image" in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.rename(image.with_suffix(".PNG")), "(upper-case extension)"),
        (lambda image: image.rename(image.with_suffix("")), "(no extension .png)"),
        (
            lambda image: image.rename(image.parent.parent / image.name),
            "found {name} (images are searched for in images/, ",
        ),
    ],
    ids=["capitals", "no ending", "elsewhere"],
)
def test_missing_images_are_told_with_the_nearest(
    run: Run, project: Path, phantom_copy: Path, change, words
) -> None:
    unpack(phantom_copy)
    image = sorted((phantom_copy / "images").iterdir())[7]
    change(image)
    printed = refuse(run, project, "validate", f"looked for images/{image.name}; found ")
    assert words.format(name=image.name) in printed
    set_params(project, {"data": {"missing_images": "drop"}})
    printed = run("validate")
    assert f'WARNING 1 row failed "image is present". The first: row 9, {image.name}: looked for' in printed
    assert "data.missing_images" not in printed


def test_image_that_is_no_image(run: Run, project: Path, phantom_copy: Path) -> None:
    unpack(phantom_copy)
    image = sorted((phantom_copy / "images").iterdir())[7]
    image.write_text("<html>Forbidden</html>")
    run("validate")
    refuse(run, project, "preprocess", image.name, "is not an image", "Replace the image")


def test_truncated_archive(run: Run, project: Path, phantom_copy: Path) -> None:
    path = phantom_copy / "images_001.tar.gz"
    path.write_bytes(path.read_bytes()[:200_000])
    refuse(run, project, "validate", "images_001.tar.gz is truncated or damaged", "Download it again")


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png"])
def test_member_outside_the_archive(run: Run, project: Path, phantom_copy: Path, name: str) -> None:
    with tarfile.open(phantom_copy / "images_002.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(name)
        tar.addfile(info)
    refuse(
        run, project, "validate", "images_002.tar.gz", f"`{name}` points outside", "Do not use this archive"
    )
    assert not list(project.parent.rglob("evil.png"))


def test_all_images_of_one_patient(run: Run, project: Path, phantom_copy: Path) -> None:
    rewrite(phantom_copy, lambda table: table.assign(**{"Patient ID": "1", "Follow-up #": range(len(table))}))
    set_params(project, {"split": {"method": "hash"}})
    run("validate")
    refuse(run, project, "preprocess", "split is empty", "400 images of 1 patient", "split.method")


def test_no_positive_of_a_class(run: Run, project: Path, phantom_copy: Path) -> None:
    def without_hernia(table: pd.DataFrame) -> pd.DataFrame:
        labels = table["Finding Labels"].str.split("|")
        kept = labels.map(lambda names: "|".join(n for n in names if n != "Hernia") or "No Finding")
        return table.assign(**{"Finding Labels": kept})

    rewrite(phantom_copy, without_hernia)
    run("validate")
    refuse(run, project, "preprocess", "Hernia has no positive image", "data.findings")


def test_patient_on_both_official_lists(run: Run, project: Path, phantom_copy: Path) -> None:
    both = phantom_copy / "test_list.txt", phantom_copy / "train_val_list.txt"
    test, train = (path.read_text().split() for path in both)
    patient = next(image.split("_")[0] for image in train if image.endswith("_001.png"))
    moved = f"{patient}_000.png"
    both[0].write_text("\n".join([*test, moved]))
    both[1].write_text("\n".join(image for image in train if image != moved))
    run("validate")
    refuse(run, project, "preprocess", "has images in more than one official split", "split.method")


def test_unwritable_output(run: Run, project: Path) -> None:
    (project / "data").write_text("a file")
    printed = run("validate", code=1)
    assert "error: " in printed
    assert "A file is in the place of a folder" in printed
    assert "Traceback" not in printed


def test_no_disk(run: Run, project: Path, small_disk: Callable[[str], Path]) -> None:
    full_disk = small_disk("256k")
    run("validate")
    (project / "data/prepared").unlink(missing_ok=True)
    printed = run("preprocess", "--out", str(full_disk / "prepared"), code=1)
    assert "No space left on device" in printed
    assert "Free some space" in printed
    assert "Traceback" not in printed
    assert not list(full_disk.iterdir())


def test_bad_worker_count(run: Run, project: Path) -> None:
    run("validate")
    refuse(run, project, "preprocess", "RAL_DASK_WORKERS", "integer", "'many'", RAL_DASK_WORKERS="many")


def test_logits_of_another_run(run: Run, project: Path) -> None:
    run("validate")
    run("preprocess")
    studies = pd.read_parquet(project / "data/prepared/studies.parquet")
    findings = list(studies.columns[studies.columns.get_loc("split") + 1 :])
    (project / "models/logits").mkdir(parents=True)
    for split in ("val", "test"):
        logits = studies.loc[studies["split"] == split, ["image_id", *findings]].iloc[1:]
        logits.to_parquet(project / f"models/logits/{split}.parquet")
    printed = run("evaluate", code=1)
    assert "error: " in printed
    assert "Traceback" not in printed
    assert not (project / "reports").exists()


@pytest.mark.parametrize("step", ["preprocess", "train", "explain", "evaluate", "robustness", "report"])
def test_step_before_has_not_run(run: Run, project: Path, step: str) -> None:
    printed = run(step, code=1)
    assert "error: " in printed
    assert "Run the steps before this one" in printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "runs"]


def test_files_of_the_user_stay(run: Run, project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine/notes.txt").write_text("precious")
    run("validate", "--out", "mine")
    run("validate", "--out", "mine")
    assert sorted(path.name for path in (project / "mine").iterdir()) == [
        "images.parquet",
        "notes.txt",
        "validation.json",
    ]
    assert (project / "mine/notes.txt").read_text() == "precious"
