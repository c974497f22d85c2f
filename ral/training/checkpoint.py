"""Checkpoints of unfinished training: atomic, checksummed; loading takes the newest valid one.

They are stored in the private `state_dir`, in a folder named after a hash of everything that affects the
result, so only an identical training resumes from them. Tensors are safetensors; nothing is pickled. The
folder is removed when training succeeds.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ral.errors import UserError
from ral.files import flush, private_folder, read_json, sha256, try_lock, write_json
from ral.models.pretrained import refuse_not_finite
from ral.user_code import files_in_use

# Packages whose version may affect results.
PACKAGES = ("torch", "deepspeed", "timm", "numpy", "pyarrow")

TENSORS, STATE, CHECKSUMS = "tensors.safetensors", "state.json", "sums.json"


def training_fingerprint(params: dict[str, Any], prepared: Path) -> str:
    """Hash of the parameters, prepared data, code and package versions of a training: 32 hexadecimal digits.

    Call it after everything that training uses is imported: the hashed code is the loaded modules of this
    project, and the files of the user's own loss and network, in the working folder. World size, micro-batch
    size and the options of other losses are excluded: training can resume with other values.
    """
    used = ("name", params["loss"]["name"], "adjust", "adjust_tau")
    loss = {name: value for name, value in params["loss"].items() if name in used}
    train = {name: value for name, value in params["train"].items() if name != "micro_batch"}
    code = sorted(
        (name, sha256(Path(module.__file__)))
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "ral" and module.__file__ is not None
    )
    content = {
        "params": params | {"loss": loss, "train": train},
        # dataset.json lists the SHA-256 of every shard.
        "data": [
            sha256(prepared / name) for name in ("dataset.json", "class_counts.json", "studies.parquet")
        ],
        "code": code,
        "user_code": files_in_use(params),
        "versions": [platform.python_version(), *(version(name) for name in PACKAGES)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Snapshot(NamedTuple):
    """The content of a checkpoint."""

    step: int
    """Completed optimizer steps; part of the checkpoint's name."""
    tensors: dict[str, Tensor]
    """Contiguous, on the CPU."""
    state: dict[str, Any]
    """Everything else, JSON serialisable: `TrainState.to_dict`."""


class Checkpoints:
    """The checkpoints of one training run.

    Args:
        folder: where they are stored; created with mode 0700 if missing. Other users must not have write
            access.
        keep: number of checkpoints to keep.
        minutes: time between two checkpoints.
    """

    def __init__(self, folder: Path, keep: int, minutes: float = 10.0) -> None:
        self.folder, self.keep, self.minutes = folder, keep, minutes
        self._last_save = time.monotonic()
        private_folder(folder)

    def due(self) -> bool:
        """Whether the time for the next checkpoint has come."""
        return time.monotonic() - self._last_save >= self.minutes * 60

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock out a second run of the same training inside the block; the kernel releases the lock if this
        process dies.

        Raises:
            UserError: another process holds the lock.
        """
        with (self.folder / "lock").open("a+", encoding="utf-8") as stream:
            if not try_lock(stream):
                stream.seek(0)
                raise UserError(
                    f"The same training is running already ({stream.read() or 'unknown process'}). Wait for "
                    "it, or stop it."
                )
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
            yield

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint atomically (temporary folder, fsync, rename), then remove all but the newest
        `keep`.

        Arguments are the parts of a `Snapshot`.

        Raises:
            OSError: the disk is full or failing; older checkpoints are unchanged.
        """
        draft = self.folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)  # left over from a killed process
        try:
            draft.mkdir(mode=0o700, parents=True)
            save_tensors(tensors, draft / TENSORS)
            write_json(draft / STATE, state)
            write_json(draft / CHECKSUMS, {name: sha256(draft / name) for name in (TENSORS, STATE)})
            for path in (*draft.iterdir(), draft):
                flush(path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)  # full disk: keep the existing checkpoints
            error.filename = error.filename or str(self.folder)
            raise
        target = self._path(step)
        shutil.rmtree(target, ignore_errors=True)  # a corrupt one that was skipped
        draft.rename(target)
        flush(self.folder)
        for old in self._paths()[: -self.keep]:
            shutil.rmtree(old)
        self._last_save = time.monotonic()

    def newest_step(self) -> int | None:
        """Optimizer steps of the newest checkpoint; None if there is none."""
        paths = self._paths()
        return _step(paths[-1]) if paths else None

    def newest_valid_step(self, log: Callable[[str], None]) -> int | None:
        """Optimizer steps of the newest valid checkpoint; None if there is none.

        Args:
            log: called with a message for each corrupt checkpoint that is skipped.
        """
        for path in reversed(self._paths()):
            problem = _problem(path)
            if problem is None:
                return _step(path)
            log(f"Checkpoint {path} is corrupt ({problem}); falling back to the previous one.")
        return None

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of the checkpoint after `step` optimizer steps, which `newest_valid_step` has checked.

        Raises:
            UserError: this machine cannot read it.
        """
        from safetensors.torch import load_file

        path = self._path(step)
        try:
            return load_file(path / TENSORS), read_json(path / STATE)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read on {platform.node()} ({error.strerror or error}), although process 0 has read "
                "it. The state folder (RAL_STATE_DIR) must be visible to all machines of a run.",
                kind="disk",
            ) from None

    def remove(self) -> None:
        """Remove all checkpoints, once training has succeeded."""
        shutil.rmtree(self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or failing. (safetensors raises an exception class of its own for this.)
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is valid."""
    from safetensors.torch import load_file

    try:
        checksums = read_json(path / CHECKSUMS)
        mismatched = [name for name in (TENSORS, STATE) if sha256(path / name) != checksums[name]]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if mismatched:
        return f"{mismatched[0]} does not match its checksum"
    tensors = load_file(path / TENSORS)
    try:
        refuse_not_finite(
            {name: t for name, t in tensors.items() if name.startswith(("weights/", "ema/"))}, ""
        )
    except UserError as error:
        return str(error).partition(". ")[0]
    return None
