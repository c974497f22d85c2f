"""Remove from state_dir what no recent run, release or unfinished training needs; `--dry-run` only lists it.

    python -m flows.tidy --dry-run                  # what would go, with sizes
    python -m flows.tidy --keep 14 --days 30        # runs kept; days until an unfinished training is abandoned
    python -m flows.tidy --image-days 90             # decoded images that no run has used for so long, too

What goes:

- checkpoints of trainings (STATE/training) that nobody has touched for `--days` and nobody runs;
- folders of runs beyond `flows.keep` in every workspace, and copies that killed experiments left (`.dvc/tmp/exps`);
- workspaces that belong to no flow and were not touched for `--days`;
- objects of DVC's cache that none of these needs: the last `--keep` runs, the releases whose bundle is there, the files
  and the experiments of the workspaces.

Bundles, the registry, the ledger and the data are never touched. It holds the workspaces while it works: a
run that starts meanwhile is cancelled as it would be by another run, so start it by day.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.settings import load_flows_environment
from flows.workspace import BRANCH, WORKSPACES, WorkspaceLockedError, git, python_env
from ral.errors import UserError, exit_with_message
from ral.files import read_json, try_lock

DAY = 86400.0

# What DVC must know of the cache, in the repository in which it collects. Links are not made there.
CONFIG = "[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = {cache}\n"


@dataclass(frozen=True)
class Rules:
    """What is old."""

    nightly_runs: int
    """Latest nightly runs whose outputs stay in DVC's cache."""
    days: float
    """After which an unfinished training, or a workspace of no flow, counts as abandoned."""
    runs: int
    """Folders of runs kept in a workspace."""
    image_days: float | None = None
    """After which decoded images that no run used are removed; None keeps them."""


def tidy(state: Path, rules: Rules, dry: bool) -> list[str]:
    """Remove what is old, or only say what would be.

    Args:
        state: state_dir.
        rules: what is old.
        dry: whether nothing is removed.

    Returns:
        A line for each thing that was, or would be, removed.

    Raises:
        WorkspaceLockedError: a run holds a workspace, or was killed in it and not yet cleared up by the next one.
        UserError: DVC could not collect; nothing of its cache is gone.
    """
    from ral.data.images.cache import prune

    lines = []
    with contextlib.ExitStack() as stack:
        for path in _holders(state):
            stack.enter_context(_held(path))
        for path, why in [*_abandoned(state, rules), *_old_runs(state, rules)]:
            lines.append(f"{_size(path):>9}  {path.relative_to(state)}  ({why})")
            if not dry:
                _remove(path)
        if rules.image_days is not None and (freed := prune(state, max_days=rules.image_days, dry=dry)):
            lines.append(f"{_words(freed):>9}  images  (not used for {rules.image_days:g} days)")
        lines += _collect(state, rules.nightly_runs, dry)
    return lines


def _holders(state: Path) -> list[Path]:
    """The lock files of all workspaces: of those that are there, and of those that a flow may make meanwhile."""
    folder = state / "workspaces"
    if not folder.is_dir():
        return []
    return sorted({*folder.glob("*.run"), *(folder / f"{name}.run" for name in WORKSPACES)})


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a workspace as a run does, without a word in it: who was killed there is for the next run to clear up."""
    with path.open("a+", encoding="utf-8") as stream:
        if not try_lock(stream):
            raise WorkspaceLockedError(f"The workspace {path.stem} is in use: wait for the run to end.")
        stream.seek(0)
        if crashed_run_id := stream.readline().strip():
            raise WorkspaceLockedError(
                f"The run {crashed_run_id} was killed in the workspace {path.stem}, and its processes may "
                "still be there. "
                f"Run {path.stem} once more (it ends them), then this."
            )
        yield


def _abandoned(state: Path, rules: Rules) -> Iterator[tuple[Path, str]]:
    """Checkpoints nobody will go on from, and workspaces of no flow."""
    for folder in sorted((state / "training").glob("*")):
        if folder.is_dir() and _age(folder) > rules.days and not _running(folder):
            yield folder, f"training not touched for {_age(folder):.0f} days"
    for folder in sorted((state / "workspaces").glob("*")):
        if folder.is_dir() and folder.name not in WORKSPACES and _age(folder) > rules.days:
            yield folder, "workspace of no flow"


def _old_runs(state: Path, rules: Rules) -> Iterator[tuple[Path, str]]:
    """Folders of old runs, and what killed experiments left, in the workspaces."""
    for name in WORKSPACES:
        workspace = state / "workspaces" / name
        if (workspace / "runs").is_dir():
            for folder in sorted((workspace / "runs").iterdir())[: -rules.runs]:
                yield folder, "old run"
        if (workspace / ".dvc/tmp/exps").is_dir():
            yield workspace / ".dvc/tmp/exps", "copies of experiments that were killed"


def _running(training: Path) -> bool:
    """Whether a process holds the lock of a training."""
    if not (training / "lock").exists():
        return False
    with (training / "lock").open(encoding="utf-8") as stream:
        return not try_lock(stream)


def _remove(path: Path) -> None:
    """Remove a folder; renamed first, so that a crash leaves no half of one under its name."""
    dead = path.with_name(f".{path.name}.removed")
    shutil.rmtree(dead, ignore_errors=True)
    path.rename(dead)
    shutil.rmtree(dead)


def _collect(state: Path, runs: int, dry: bool) -> list[str]:
    """Have DVC remove the objects of the shared cache that nothing kept needs."""
    kept = wanted(state, runs)
    if not kept or not (state / "dvc").is_dir():
        return []
    folder = state / "tidy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        git(folder, "init", "--quiet", "--initial-branch", "keep/0")
        refs = [f"+{commit}:refs/heads/keep/{index}" for index, commit in enumerate(kept)]
        git(folder, "fetch", "--quiet", "--no-tags", "--update-head-ok", str(state / "registry.git"), *refs)
        git(folder, "checkout", "--quiet", "--force", "keep/0")
        (folder / ".dvc").mkdir(exist_ok=True)
        (folder / ".dvc/config.local").write_text(CONFIG.format(cache=state / "dvc"), encoding="utf-8")
        before = _bytes(state / "dvc")
        told = _gc(folder, _projects(state), dry)
        freed = before - _bytes(state / "dvc")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # DVC's own line says how many; those of other caches (it has one per way of hashing) are of no interest.
    said = [line.removeprefix("Removed ") for line in told.splitlines() if line.startswith("Removed ")]
    return [f"{'?' if dry else _words(freed):>9}  dvc  ({line})" for line in said]


def wanted(state: Path, runs: int) -> list[str]:
    """Commits whose outputs are kept: the last runs, and those of the releases that have a bundle.

    Raises:
        UserError: a bundle does not say which commit it is of.
    """
    registry = state / "registry.git"
    kept: list[str] = []
    with contextlib.suppress(subprocess.CalledProcessError):  # no run yet
        kept = git(registry, "rev-list", "--first-parent", f"--max-count={runs}", BRANCH).splitlines()
    for bundle in sorted(path for path in (state / "releases").glob("v*") if path.is_dir()):
        try:
            kept.append(str(read_json(bundle / "bundle.json")["commit"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{bundle}/bundle.json cannot be read ({error}), so what the release needs is not known; DVC's cache "
                "stays as it is. Bring the bundle back from a backup."
            ) from None
    return list(dict.fromkeys(kept))


def _projects(state: Path) -> list[str]:
    """Workspaces that share the cache: what their files and experiments need stays."""
    folders = sorted(path for path in (state / "workspaces").glob("*") if (path / ".dvc").is_dir())
    return [str(path) for path in folders]


def _gc(folder: Path, projects: list[str], dry: bool) -> str:
    options = ["--workspace", "--all-branches", "--all-experiments", "--force"]
    options += ["--projects", *projects] if projects else []
    options += ["--dry"] if dry else []
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "gc", *options], cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, env=python_env() | {"DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"dvc gc: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _age(folder: Path) -> float:
    """Days since a file of the folder was last written."""
    times = [folder.stat().st_mtime, *(path.lstat().st_mtime for path in _files(folder))]
    return (time.time() - max(times)) / DAY


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in _files(folder))


def _size(folder: Path) -> str:
    return _words(_bytes(folder))


def _words(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def main() -> None:
    """Tidy the state_dir of this machine's ral.toml."""
    with exit_with_message():
        environment = load_flows_environment()
    keep = environment.flows.keep
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", type=_at_least_one, default=keep, help=f"nightly runs whose outputs are kept ({keep})"
    )
    parser.add_argument("--days", type=float, default=30, help="days until it counts as abandoned (30)")
    parser.add_argument("--image-days", type=float, help="decoded images not used for so long go (none)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    options = parser.parse_args()
    rules = Rules(options.keep, options.days, keep, options.image_days)
    with exit_with_message():
        try:
            lines = tidy(environment.state_dir.absolute(), rules, options.dry_run)
        except WorkspaceLockedError as error:
            raise UserError(str(error)) from None
    what = "would remove" if options.dry_run else "removed"
    print("\n".join(f"{what} {line}" for line in lines) or "Nothing to remove.")


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    main()
