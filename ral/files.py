"""Files that appear whole or not at all, JSON with stable bytes, content hashes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ral.errors import UserError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` only if the block succeeds.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; what is in it appears in `path` only if the block succeeds.

    Entries of the same name in an older folder are replaced; others are not this step's and stay.

    Raises:
        UserError: another process is writing the same folder.
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{os.getpid()}.draft"
    draft.mkdir()
    try:
        # Made first, looked round second: of two runs that begin at once, at least one sees the other.
        for other in path.parent.glob(f".{path.name}.*.draft"):
            if other != draft and _alive(int(other.name.split(".")[-2])):
                raise UserError(
                    f"Another run is writing {path} at this moment (it works in {other}). Wait for its end, or work in "
                    "another copy of the project.",
                    retry=True,
                )
            if other != draft:  # left by a process that was killed
                shutil.rmtree(other, ignore_errors=True)
        yield draft
        if not path.exists():
            draft.replace(path)
        else:
            for entry in sorted(draft.iterdir()):
                target = path / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                entry.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


@contextmanager
def private_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path`, readable by this user only, if the block succeeds."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".draft", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON whose bytes depend on nothing but the value (NaN is refused: write null)."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with new_file(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that a step of this pipeline wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
