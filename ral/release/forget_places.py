"""Where excluded patients are still kept: caches, old runs, releases, DVC's cache, histories; and their removal.

The user's own data is no such place: the data folder, data that is tracked with DVC (NAME.dvc), the phantom images.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from ral import artifacts
from ral.data.baseline import LOGITS, SPLIT
from ral.errors import UserError
from ral.files import atomic_write, locked, try_lock
from ral.release.forget_cache import OUTPUTS, blob, cache_folder, is_repository, old_objects, versions
from ral.release.forget_traces import Traces
from ral.release.registry import CHAMPION, LOCK, Registry
from ral.wording import pluralize

# What is done with a place on request. rewrite: remove the rows. manual: only a person can, or may.
Action = Literal["remove", "rewrite", "manual"]

RERUN = "output of the last run: run the pipeline with data.exclude_patients first (dvc repro)"


@dataclass(frozen=True)
class Place:
    """A place that still has something of excluded patients.

    Attributes:
        what: what it is, without a name of theirs.
        action: what pruning does with it.
        paths: its files and folders; more than one for a cache.
    """

    what: str
    action: Action
    paths: Sequence[Path]

    @property
    def size(self) -> int:
        """Bytes of its files, while they are there."""
        return sum(_bytes(path) for path in self.paths)


def find_places(project: Path, state: Path, traces: Traces) -> list[Place]:
    """List what still has excluded patients.

    Args:
        project: the project folder.
        state: state_dir.
        traces: of the patients.

    Raises:
        UserError: a git repository cannot be read.
    """
    workspaces = sorted(path for path in (state / "workspaces").glob("*") if path.is_dir())
    folders = [project, *workspaces]
    places = list(_outputs(project, traces, "manual", RERUN))
    for workspace in workspaces:
        places += _outputs(workspace, traces, "remove", "output in a workspace of the flows")
    for folder in folders:
        places += _runs_and_baseline(folder, traces)
    places += _state(project, state, traces)
    places += _releases(state, traces)
    repositories = [path for path in (*folders, state / "registry.git") if is_repository(path)]
    caches = dict.fromkeys([cache_folder(project).resolve(), (state / "dvc").resolve()])
    for cache in (path for path in caches if path.is_dir()):
        objects = old_objects(cache, folders, repositories, traces)
        if objects:
            places.append(Place("DVC's cache: outputs of runs with them", "remove", objects))
    places += _histories(repositories, traces)
    return places


def _outputs(folder: Path, traces: Traces, action: Action, what: str) -> Iterator[Place]:
    paths = [path for name in sorted(OUTPUTS) if (path := folder / name).exists() and traces.in_folder(path)]
    features = folder / artifacts.FEATURES
    if paths and features.exists():  # of the same images, without names
        paths.append(features)
    for path in paths:
        yield Place(what, action, [path])


def _runs_and_baseline(folder: Path, traces: Traces) -> Iterator[Place]:
    for name in (SPLIT, LOGITS):
        path = folder / artifacts.BASELINE / name
        if traces.in_file(path):
            yield Place("accepted baseline (commit it afterwards)", "rewrite", [path])
    for name, what in (("runs", "record of a run"), (".dvc/tmp/exps", "copy of an experiment")):
        for path in sorted((folder / name).glob("*")):
            if traces.in_folder(path):
                yield Place(what, "remove", [path])


def _state(project: Path, state: Path, traces: Traces) -> Iterator[Place]:
    """Caches in state_dir."""
    for path in sorted((state / "images").glob("*/*.arrow")):
        if traces.in_file(path):
            yield Place("cache of decoded images (others are decoded again)", "remove", [path])
    for path in sorted((state / "raw").glob("*.parquet")):
        if traces.in_file(path) and traces.in_source:
            what = "names and hashes of files in the data folder: remove the files there first, then prune"
            yield Place(what, "manual", [path])
        elif traces.in_file(path):
            yield Place("names and hashes of files that were in the data folder", "remove", [path])
    folders = [project, *(state / "workspaces").glob("*")]
    # Features and checkpoints have no names: they are recognized by their key, and by their age.
    banks = sorted(path for path in (state / "features").glob("*") if path.is_dir())
    current = {name for folder in folders if banks for name in _banks_of(folder, traces)}
    for path in banks:
        # A draft is one that is being written, or was (`atomic_directory`).
        name = path.name.removeprefix(".").removesuffix(".draft")
        if name not in current and not _in_use(path.with_name(f".{name}.lock")):
            yield Place("feature bank of other data or another model than are here", "remove", [path])
    datasets = [path for folder in folders if (path := folder / artifacts.DATASET).is_file()]
    prepared = max((path.stat().st_mtime for path in datasets), default=0.0)
    for path in sorted((state / "training").glob("*")):
        if path.is_dir() and _newest(path) < prepared and not _in_use(path / "lock"):
            yield Place("unfinished training that is older than data/prepared", "remove", [path])


def _banks_of(folder: Path, traces: Traces) -> Iterator[str]:
    """Names of the feature banks of the model and the prepared data in a folder; none if the data has the patients."""
    models, prepared = folder / artifacts.MODELS, folder / artifacts.PREPARED
    needed = (folder / artifacts.WEIGHTS, folder / artifacts.MODEL, folder / artifacts.DATASET)
    if not all(path.is_file() for path in needed) or traces.in_folder(prepared):
        return
    from ral.data.dataset import open_dataset
    from ral.inference.bank import Precision, bank_key, folder_name

    dataset = open_dataset(prepared)
    for precision in get_args(Precision):
        yield folder_name(bank_key(models, dataset, precision))


def _releases(state: Path, traces: Traces) -> Iterator[Place]:
    if not (state / "registry.git").is_dir():
        return
    for release in Registry(state).releases():
        if not release.bundle.is_dir() or not traces.in_folder(release.bundle):
            continue
        if release.stage == CHAMPION:
            what = f"{release.version}, the champion: promote a model without them first, then prune"
            yield Place(what, "manual", [release.bundle])
        else:
            yield Place(
                f"bundle of the release {release.version} (its tag stays)", "remove", [release.bundle]
            )


def _histories(repositories: Sequence[Path], traces: Traces) -> Iterator[Place]:
    for repository in repositories:
        count = 0
        for name in (SPLIT, LOGITS):
            for digest in versions(repository, str(artifacts.BASELINE / name)):
                count += _in_blob(blob(repository, digest), traces)
        if count:
            files = pluralize(count, "file", "files")
            what = (
                f"history of git: {files} in versions of {artifacts.BASELINE}/ (rewrite it: git filter-repo)"
            )
            yield Place(what, "manual", [repository])


def _in_blob(content: bytes, traces: Traces) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return traces.in_table(pq.read_table(io.BytesIO(content)))
    except pa.ArrowException:
        return traces.in_text(content)


def prune(places: Sequence[Place], state: Path, traces: Traces) -> tuple[list[Place], int]:
    """Remove what `find_places` listed, except for what only a person can; returns it, and the bytes that it had.

    Args:
        places: result of `find_places`.
        state: state_dir.
        traces: of the patients.

    Raises:
        UserError: outputs of the project still have the patients, or a run is in progress; nothing is removed.
    """
    if any(place.what == RERUN for place in places):
        raise UserError(
            "The outputs of this project still have excluded patients. Run the pipeline first (dvc repro): its stages "
            "would otherwise be restored from what is removed. Nothing was removed."
        )
    done = [place for place in places if place.action != "manual"]
    size = sum(place.size for place in done if place.action == "remove")
    with contextlib.ExitStack() as stack:
        for path in sorted((state / "workspaces").glob("*.run")):
            stream = stack.enter_context(path.open("a+", encoding="utf-8"))
            if not try_lock(stream):
                raise UserError(f"A run is in progress in the workspace {path.stem}: wait for its end.")
        if state.is_dir():
            stack.enter_context(locked(state / LOCK))
        for place in done:
            for path in place.paths:
                if place.action == "rewrite":
                    _rewrite(path, traces)
                else:
                    _remove(path)
    return done, size


def _rewrite(path: Path, traces: Traces) -> None:
    """Remove the rows of excluded patients from a table of patients or of images."""
    table = pd.read_parquet(path)
    by_patient = "patient_id" in table
    theirs = traces.patients(table["patient_id"]) if by_patient else table["image_id"].isin(traces.ids)
    with atomic_write(path) as draft:
        table[~theirs].to_parquet(draft, index=False, compression=None)


def _remove(path: Path) -> None:
    """Remove a file or a folder; a folder is renamed first, so that a crash leaves no half of it under its name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    target = path.with_name(f".{path.name}.removed")
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)
    shutil.rmtree(target)


def _in_use(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open(encoding="utf-8") as stream:
        return not try_lock(stream)


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    return sum(each.lstat().st_size for each in path.rglob("*") if each.is_file())
