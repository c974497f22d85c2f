"""Archives for tests."""

import io
import tarfile
from pathlib import Path


def write_tar(path: Path, folder: Path, mode: str = "w") -> Path:
    """An archive of the files of a folder, in order."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in sorted(folder.iterdir()):
            member = tarfile.TarInfo(file.name)
            content = file.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
