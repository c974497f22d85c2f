"""Names of files in a data folder: which are images, which are archives of images, which do not count."""

from collections.abc import Iterable
from pathlib import Path

from ral.errors import UserError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")


def is_image(path: str) -> bool:
    """Whether a file or an archive's member is an image by its name."""
    return path.lower().endswith(IMAGE_ENDINGS) and not is_hidden(path)


def is_archive(name: str) -> bool:
    """Whether a file of the data folder is an archive of images by its name."""
    return is_of_images(name) and name.lower().endswith(ARCHIVE_ENDINGS)


def is_of_images(name: str) -> bool:
    """Whether a folder or archive of the data folder is one of images by its name."""
    return name.lower().startswith("images")


def is_hidden(path: str) -> bool:
    """Whether a name begins with a dot, or lies where one does: macOS puts `._NAME` and `__MACOSX/` beside files."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/")
    )


def shown(name: object) -> str:
    r"""A name or path for a message: in one line, and printable whatever is in it (`\n`; `\xf6` for a lone byte)."""
    return "".join(
        sign
        if sign.isprintable()
        else f"\\x{ord(sign) - 0xDC00:02x}"
        if "\udc80" <= sign <= "\udcff"
        else sign.encode("unicode_escape").decode()
        for sign in str(name)
    )


def is_utf8(name: str) -> bool:
    """Whether a name of the file system, or of an archive, is UTF-8 text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_root(root: Path) -> None:
    """Check that the data folder is there, and that messages and tables can name it.

    Raises:
        UserError: it is not.
    """
    if not is_utf8(str(root)):
        raise UserError(
            f"The name of the data folder {shown(root)} is not UTF-8. Rename it, or set data.root to a link to it."
        )
    if not root.is_dir():
        raise UserError(f"The data folder {shown(root)} does not exist. Correct data.root.")


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Check that tables can hold the names of a folder's files.

    Raises:
        UserError: one is not UTF-8.
    """
    for name in names:
        if not is_utf8(name):
            raise UserError(
                f"{shown(folder)}: the name `{shown(name)}` is not UTF-8. Rename it (with convmv, for instance), or "
                "move it out of the data folder."
            )
