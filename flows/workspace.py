"""One workspace per deployment: a checkout at a revision in state_dir, and the record of the nightly runs.

    STATE/workspaces/nightly     checkout that the runs of one deployment share, one run at a time
    STATE/workspaces/nightly.run which run holds it; the lock is the kernel's and ends with the process
    STATE/registry.git           bare repository: one commit per recorded run (branch `nightly`), releases as tags
    STATE/dvc                    DVC's cache of all workspaces, and the remote `state` of their outputs

A checkout is never the caller's: files do not change under a running flow. Outputs are kept between runs and
come from the cache by links, so that an unchanged archive is neither hashed nor copied again.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, get_args

import psutil
from pydantic import ValidationError
from ruamel.yaml import YAML

from flows.overrides import Changes, apply_changes
from ral import errors
from ral.config.base import explain, read_yaml
from ral.config.params import Params
from ral.errors import UserError
from ral.files import atomic_write, flush, locked, private_folder, try_lock
from ral.records import Record
from ral.release.durable import clear_git_locks
from ral.release.ledger import NAME, Ledger
from ral.release.registry import LOCK
from ral.runs import RUN_ID

# Workspaces of the flows, one per flow; tidy keeps them.
WorkspaceName = Literal["nightly", "train-ral", "compare"]
WORKSPACES: tuple[WorkspaceName, ...] = get_args(WorkspaceName)

BRANCH = "nightly"

# File with the inputs of a run in its commit.
RUN_INPUTS = "nightly.json"

# Branch of the registry with the ledger as it was pushed.
LEDGER_BRANCH = "ledger"

AUTHOR = ("-c", "user.name=ral nightly", "-c", "user.email=ral@localhost")


class WorkspaceLockedError(Exception):
    """Another run holds the lock of the workspace."""


@dataclass(frozen=True)
class Workspace:
    """A checkout at a commit of the project."""

    folder: Path
    """The checkout."""
    state: Path
    """state_dir."""
    revision: str
    """Commit of the project that is checked out."""

    @property
    def registry(self) -> Path:
        """The bare repository of the record."""
        return self.state / "registry.git"


class RunInputs(Record):
    """What a nightly run is made from; a run with the inputs of the last one has nothing to do."""

    revision: str
    """Commit of the project."""
    changes: Changes
    """Changed parameters by dotted name."""
    manifest: str
    """SHA-256 of data/manifest.json; phantom data follow from code and parameters."""


@contextlib.contextmanager
def lock_workspace(state: Path, name: str, run: str, flow_run: str) -> Iterator[str | None]:
    """Lock the workspace `name` during the block; yield the id of a flow run that was killed while it held
    the lock, or None.

    Processes that a killed run left behind are killed first.

    Args:
        state: state_dir.
        name: of the workspace.
        run: id of the run; its processes have it in their environment.
        flow_run: its id in Prefect.

    Raises:
        WorkspaceLockedError: another run holds the lock; the message names it.
    """
    path = state / "workspaces" / f"{name}.run"
    private_folder(path.parent)
    with path.open("a+", encoding="utf-8") as stream:
        stream.seek(0)
        if not try_lock(stream):
            raise WorkspaceLockedError(
                f"The workspace {name} is locked by run {stream.readline().strip() or 'in another process'}."
            )
        crashed_run_id = stream.read().split()
        if crashed_run_id:
            end_processes(crashed_run_id[0])
        _write(stream, f"{run}\n{flow_run}\n")
        try:
            yield crashed_run_id[-1] if crashed_run_id else None
        finally:
            _write(stream, "")


def _write(stream: TextIO, text: str) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(text)
    stream.flush()
    flush(Path(stream.name))


def end_processes(run: str) -> None:
    """Kill the remaining processes of a run that was killed, on this machine."""
    killed = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            if process.environ().get(RUN_ID) == run and process.pid != os.getpid():
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=10)


def open_workspace(state: Path, name: str, source: str, revision: str, changes: Changes) -> Workspace:
    """Check the project out at a revision, with changed parameters and the dvc.lock of the last recorded run.

    Args:
        state: state_dir.
        name: of the workspace, held by the caller.
        source: folder or address of the project's git repository.
        revision: branch, tag or commit in it; HEAD is its default branch.
        changes: parameters by dotted name ("train.epochs"), with their values.

    Raises:
        UserError: the repository or revision does not exist, or a parameter is invalid.
    """
    folder = state / "workspaces" / name
    registry = state / "registry.git"
    with locked(state / LOCK):
        if not (registry / "HEAD").is_file():
            git(state, "init", "--quiet", "--bare", "--initial-branch", BRANCH, str(registry))
        clear_git_locks(registry)
    if not (folder / ".git/HEAD").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "--quiet")
    clear_git_locks(folder / ".git")  # this run holds the workspace
    if revision.startswith("-"):
        raise UserError(f"{revision!r} is not a valid revision.")
    try:
        git(
            folder, "fetch", "--quiet", "--force", "--prune", "--no-tags", source,
            "+refs/heads/*:refs/source/heads/*", "+refs/tags/*:refs/source/tags/*", "+HEAD:refs/source/HEAD",
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise UserError(f"{source}: cannot fetch the project. {error.stderr.strip()}") from None
    commit = _resolve(folder, source, revision)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    git(folder, "clean", "--quiet", "-fd")
    copy_machine_config(folder)
    restore_dvc_lock(folder, registry)
    change_params(folder / "params.yaml", changes)
    _configure_dvc(folder, state / "dvc")
    return Workspace(folder, state, commit)


def _resolve(folder: Path, source: str, revision: str) -> str:
    for name in (
        f"refs/source/{revision}",
        f"refs/source/heads/{revision}",
        f"refs/source/tags/{revision}",
        revision,
    ):
        with contextlib.suppress(subprocess.CalledProcessError):
            return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    raise UserError(f"{source} has no branch, tag or commit {revision!r}.")


def copy_machine_config(folder: Path) -> None:
    """Copy this machine's ral.toml into the checkout; it is not part of the record."""
    (folder / ".git/info/exclude").write_text("/ral.toml\n", encoding="utf-8")
    if Path("ral.toml").is_file():
        shutil.copyfile("ral.toml", folder / "ral.toml")
    else:
        (folder / "ral.toml").unlink(missing_ok=True)


def restore_dvc_lock(folder: Path, registry: Path) -> None:
    """Restore dvc.lock of the last recorded run, so that DVC reuses its outputs.

    Raises:
        UserError: the record cannot be read; without it this run would not build on the last one.
    """
    try:
        # git ignores a reference that a power failure has emptied; that is different from no run yet.
        broken = (registry / "refs/heads" / BRANCH).exists()
        if not git(registry, "for-each-ref", f"refs/heads/{BRANCH}") and not broken:
            return
        record = f"refs/record/{BRANCH}"
        git(folder, "fetch", "--quiet", "--no-tags", str(registry), f"+refs/heads/{BRANCH}:{record}")
        if git(folder, "ls-tree", record, "dvc.lock"):
            text = git(folder, "show", f"{record}:dvc.lock") + "\n"
            (folder / "dvc.lock").write_text(text, encoding="utf-8")
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{registry}: the record of the nightly runs cannot be read. {' '.join(error.stderr.split())} "
            f"Check it with git -C {registry} "
            "fsck, and restore it from a backup or from flows.push_git."
        ) from None


def _configure_dvc(folder: Path, cache: Path) -> None:
    """The local configuration: one cache for all workspaces, which is the remote `state` too, so nothing is
    held twice.
    """
    lines = [
        "[core]",
        "    autostage = true",
        "[cache]", f"    dir = {cache}", "    type = reflink,hardlink,symlink,copy",
        "['remote \"state\"']", f"    url = {cache}", "",
    ]  # fmt: skip
    with atomic_write(folder / ".dvc/config.local") as draft:
        draft.write_text("\n".join(lines), encoding="utf-8")


def change_params(path: Path, changes: Changes) -> None:
    """Write changed parameters into params.yaml, once they have been checked with the others.

    Raises:
        UserError: a key is unknown (see `apply_changes`), or a value is not allowed.
    """
    yaml = YAML()
    content = yaml.load(path.read_text(encoding="utf-8"))
    apply_changes(content, changes)
    if changes:
        with atomic_write(path) as draft, draft.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
    try:
        Params.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(
            explain(error, Params, Path("params.yaml with the changes" if changes else "params.yaml"))
        ) from None


def commit_run(workspace: Workspace, run: str, run_inputs: RunInputs) -> str:
    """Commit the inputs of a run (code, parameters, baseline, dvc.lock) to the branch of the record.

    Committing the same run twice, such as after a crash, gives one commit.

    Args:
        workspace: after the last stage.
        run: id of the run, for the message.
        run_inputs: stored in nightly.json.

    Returns:
        The commit.
    """
    folder = workspace.folder
    run_inputs.write(folder / RUN_INPUTS)
    git(folder, "add", "--all")
    tree = git(folder, "write-tree")
    parents = [workspace.revision]
    last = last_recorded_commit(workspace)
    if last is not None:
        if git(folder, "rev-parse", f"{last}^{{tree}}") == tree:
            return last
        parents.insert(0, last)
    options = [part for parent in parents for part in ("-p", parent)]
    commit = git(folder, *AUTHOR, "commit-tree", tree, *options, "-m", f"Nightly run {run}")
    with locked(workspace.state / LOCK):
        git(folder, "push", "--quiet", str(workspace.registry), f"{commit}:refs/heads/{BRANCH}")
    git(folder, "update-ref", f"refs/record/{BRANCH}", commit)
    return commit


def commit_ledger(workspace: Workspace) -> None:
    """Commit the ledger to a branch of the registry, so that it is pushed with the registry.

    Raises:
        UserError: its chain is broken.
    """
    registry, ledger = workspace.registry, Ledger(workspace.state)
    if not ledger.entries():
        return
    with locked(workspace.state / LOCK):
        blob = git(registry, "hash-object", "-w", "--no-filters", str(ledger.path))
        tree = git(registry, "mktree", text=f"100644 blob {blob}\t{NAME}\n")
        last = git(
            registry, "for-each-ref", "--format=%(objectname) %(tree)", f"refs/heads/{LEDGER_BRANCH}"
        ).split()
        if last[1:] == [tree]:
            return
        parent = ["-p", last[0]] if last else []
        commit = git(registry, *AUTHOR, "commit-tree", tree, *parent, "-m", "The ledger")
        git(registry, "update-ref", f"refs/heads/{LEDGER_BRANCH}", commit, *last[:1])


def last_recorded_commit(workspace: Workspace) -> str | None:
    """Commit of the last recorded run, or None."""
    try:
        return git(workspace.folder, "rev-parse", "--verify", "--quiet", f"refs/record/{BRANCH}")
    except subprocess.CalledProcessError:
        return None


def load_run_inputs(repository: Path, commit: str) -> RunInputs | None:
    """The inputs of a recorded run, or None if the commit has none that this version can read."""
    try:
        return RunInputs.model_validate_json(git(repository, "show", f"{commit}:{RUN_INPUTS}"))
    except (subprocess.CalledProcessError, ValidationError):
        return None  # then the inputs count as changed


def git(folder: Path, *arguments: str, text: str = "") -> str:
    """What git prints, without the last newline; `text` is its standard input.

    Raises:
        subprocess.CalledProcessError: git failed; neither its text nor the command in it holds a password.
    """
    # A worker may have been started from a git hook or with another repository in its environment.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, input=text,
        env=clean | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode,
            [errors.plain(part) for part in done.args],
            errors.plain(done.stdout),
            errors.plain(done.stderr),
        )
    return done.stdout.rstrip("\n")


def python_env() -> dict[str, str]:
    """The environment of a command in a workspace: `python` is the one that runs the flow, lines are not held back."""
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
