"""Checkpoints of unfinished training: whole or absent, checksummed, the newest sound one found again.

They live in the private `state_dir`, in a folder whose name is a hash of everything that decides the result, so that
only the very same training goes on from them. Tensors are safetensors; nothing is pickled. The folder goes when
training succeeds.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ral.errors import UserError
from ral.files import private_folder, read_json, sha256, write_json
from ral.models.pretrained import refuse_not_finite

# Packages whose version may change a result.
PACKAGES = ("torch", "deepspeed", "timm", "numpy", "pyarrow")

TENSORS, FACTS, SUMS = "tensors.safetensors", "facts.json", "sums.json"


def training_fingerprint(params: dict[str, Any], prepared: Path) -> str:
    """Name of the training that `params`, the prepared data, the code and the versions decide: 32 hexadecimal digits.

    Call it when everything that training uses is imported: the code is the loaded modules of this project.
    World size and micro-batch are left out, for they share the work out and a training may go on with others; so are the
    options of other losses.
    """
    loss = {name: value for name, value in params["loss"].items() if name in ("name", params["loss"]["name"])}
    train = {name: value for name, value in params["train"].items() if name != "micro_batch"}
    code = sorted(
        (name, sha256(Path(module.__file__)))
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "ral" and module.__file__ is not None
    )
    content = {
        "params": params | {"loss": loss, "train": train},
        # dataset.json holds the SHA-256 of every shard.
        "data": [
            sha256(prepared / name) for name in ("dataset.json", "class_counts.json", "studies.parquet")
        ],
        "code": code,
        "versions": [platform.python_version(), *(version(name) for name in PACKAGES)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: their folder; made private (mode 0700) if it is not there; others may not write to it.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        private_folder(folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run of the same training out while the block runs; the kernel lets go if this process dies.

        Raises:
            UserError: another process holds it.
        """
        with (self.folder / "lock").open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise UserError(
                    f"The same training is running already ({stream.read() or 'somewhere'}). Wait for it, or end it."
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
            yield

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write one checkpoint, then remove those beyond the newest `keep`.

        Args:
            step: optimizer steps done; names the checkpoint.
            tensors: contiguous, on the CPU.
            facts: everything else, as JSON.

        Raises:
            OSError: the disk is full or fails; the older checkpoints are as they were.
        """
        draft = self.folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed
        try:
            draft.mkdir(mode=0o700, parents=True)
            save_tensors(tensors, draft / TENSORS)
            write_json(draft / FACTS, facts)
            write_json(draft / SUMS, {name: sha256(draft / name) for name in (TENSORS, FACTS)})
            for path in (*draft.iterdir(), draft):
                _flush(path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)  # a full disk: the checkpoints that are there stay
            error.filename = error.filename or str(self.folder)
            raise
        target = self.folder / f"step-{step:09d}"
        shutil.rmtree(target, ignore_errors=True)  # a damaged one that was passed over
        draft.rename(target)
        _flush(self.folder)
        for old in self._found()[: -self.keep]:
            shutil.rmtree(old)

    def newest_step(self) -> int | None:
        """Optimizer steps of the newest checkpoint; None without any."""
        found = self._found()
        return int(found[-1].name.removeprefix("step-")) if found else None

    def load_latest(self, say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the newest sound checkpoint; None without any.

        Args:
            say: told of every damaged one that is passed over.
        """
        from safetensors.torch import load_file

        for path in reversed(self._found()):
            problem = _problem(path)
            if problem is None:
                tensors = load_file(path / TENSORS)
                try:
                    weights = {
                        name: t for name, t in tensors.items() if name.startswith(("weights/", "ema/"))
                    }
                    refuse_not_finite(weights, "")
                    return tensors, read_json(path / FACTS)
                except UserError as error:
                    problem = str(error).partition(". ")[0]
            say(f"checkpoint {path} is damaged ({problem}): going back to the one before it")
        return None

    def remove(self) -> None:
        """Training has succeeded: take the checkpoints away."""
        shutil.rmtree(self.folder)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or fails, which safetensors itself tells as an error of its own.
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


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = read_json(path / SUMS)
        wrong = [name for name in (TENSORS, FACTS) if sha256(path / name) != sums[name]]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{wrong[0]} does not match its checksum" if wrong else None


def _flush(path: Path) -> None:
    """Have the disk hold what was written, so that a power cut leaves no checkpoint with a hole."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
