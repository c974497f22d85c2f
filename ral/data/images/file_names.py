"""Classifies file names in a data folder (images, archives, ignored files) and formats them for messages."""

from collections.abc import Iterable
from pathlib import Path

from ral.errors import UserError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")


def is_image(path: str) -> bool:
    """Whether a file or a member of an archive is an image, by its name."""
    return path.lower().endswith(IMAGE_ENDINGS) and not is_hidden(path)


def is_archive(name: str) -> bool:
    """Whether a file in the data folder is an archive of images, by its name."""
    return is_of_images(name) and name.lower().endswith(ARCHIVE_ENDINGS)


def is_of_images(name: str) -> bool:
    """Whether a folder or archive in the data folder has images, by its name."""
    return name.lower().startswith("images")


def is_hidden(path: str) -> bool:
    """Whether any part of a path begins with a dot or is `__MACOSX`, which macOS adds to archives."""
    if not path.startswith(".") and "/." not in path and "__MACOSX" not in path:
        return False  # the usual name; archives have millions
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/")
    )


def shown(name: object) -> str:
    r"""Escape a name or path for a message: one printable line (`\n`; `\xf6` for an undecodable byte)."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(
        sign
        if sign.isprintable()
        else f"\\x{ord(sign) - 0xDC00:02x}"
        if "\udc80" <= sign <= "\udcff"
        else sign.encode("unicode_escape").decode()
        for sign in text
    )


def is_utf8(name: str) -> bool:
    """Whether a name from the file system or an archive is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_root(root: Path) -> None:
    """Check that the data folder exists and that its name is UTF-8.

    Raises:
        UserError: it does not, or is not.
    """
    if not is_utf8(str(root)):
        raise UserError(
            f"The name of the data folder {shown(root)} is not UTF-8. Rename it, or set data.root to a link to it."
        )
    if not root.is_dir():
        raise UserError(f"The data folder {shown(root)} does not exist. Correct data.root.")


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Check that the names of a folder's files are UTF-8.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if not is_utf8(name):
            raise UserError(
                f"{shown(folder)}: the name `{shown(name)}` is not UTF-8. Rename it (for example with convmv), or "
                "move it out of the data folder."
            )
