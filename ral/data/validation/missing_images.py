"""Says of an image that is missing where it was looked for, and what lies there that may be it."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from ral.data.images.file_names import ARCHIVE_ENDINGS, IMAGE_ENDINGS, is_archive, is_image, shown
from ral.data.images.locate import find_sources
from ral.data.manifest import walk
from ral.errors import UserError

# Endings under which other tools keep images, none of which is read.
PACKED_ENDINGS = tuple(ending + ".gz" for ending in IMAGE_ENDINGS)
OTHER_ENDINGS = (
    *PACKED_ENDINGS,
    *[".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".npy", ".nii.gz", ".nii", ".ima"],
)

ELSEWHERE = "in another folder"


class _There(NamedTuple):
    """An image, or what may be one: its path, and the archive that it is in or ""."""

    path: str
    archive: str


def describe_missing(root: Path, wanted: Sequence[str], images: pd.DataFrame, by_path: bool) -> list[str]:
    """What to say of images that are not there: the name that was looked for, and the nearest that lies there.

    The folder is walked once, whatever the number of images; nothing is read.

    Args:
        root: the data folder.
        wanted: what a table says: image ids, or paths below `root`.
        images: rows of `ral.data.images.locate.list_images`, for the members of archives.
        by_path: whether `wanted` are paths.

    Returns:
        One short text per image, in one line.

    Raises:
        UserError: `root` is missing.
        OSError: a folder cannot be read.
    """
    if not wanted:
        return []
    keys = {key for name in wanted for key in (_key(name), _number(_key(name)))}
    near: dict[str, list[_There]] = {}
    count, first, archive = 0, "", ""
    for there in _candidates(root, images):
        name = there.path.rpartition("/")[2]
        if is_image(name):
            count, first = count + 1, first or _place(there)
        elif (
            name.lower().endswith(ARCHIVE_ENDINGS)
            and not there.archive
            and (by_path or not is_archive(there.path))
        ):
            archive = archive or there.path
        key = _key(name)
        if key in keys:
            near.setdefault(key, []).append(there)
        elif (number := _number(key)) in keys:
            near.setdefault(number, []).append(there)
    nothing = (
        f"nothing like it is there; of {count:,} images the first is {first}"
        if count
        else "no image is there"
    )
    if archive:
        nothing += f"; {shown(archive)} is not looked into: unpack it"
    folders = [""] if by_path else _folders(root)
    return [
        f"looked for {shown(_looked_for(name, folders))}; "
        + (_odd(root, name, folders) or _nearest(name, near, folders, by_path) or nothing)
        for name in wanted
    ]


def _candidates(root: Path, images: pd.DataFrame) -> Iterator[_There]:
    for folder, names in walk(root):
        place = folder.relative_to(root).as_posix()
        for name in names:
            yield _There(name if place == "." else f"{place}/{name}", "")
    inside = images[images["member"] != ""]
    for path, member in zip(inside["path"].tolist(), inside["member"].tolist(), strict=True):
        yield _There(member, path)


def _folders(root: Path) -> list[str]:
    """Folders in which images are looked for by name, relative to `root`, each with a slash at its end."""
    try:
        return [folder.relative_to(root).as_posix() + "/" for folder in find_sources(root)[1]]
    except UserError:  # there are none
        return []


def _looked_for(name: str, folders: Sequence[str]) -> str:
    return f"{folders[0]}{name}" if len(folders) == 1 else name


def _place(there: _There) -> str:
    return shown(there.path) + (f" in {shown(there.archive)}" if there.archive else "")


def _odd(root: Path, name: str, folders: Sequence[str]) -> str:
    """What stands at the very place but is no file; "" if nothing does."""
    if not name.strip() or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return ""
    for folder in folders:
        path = os.path.join(root, folder, name)  # pathlib raises an error for names that are too long
        if os.path.isdir(path):
            return f"{shown(folder + name)} is a folder"
        if os.path.islink(path) and not os.path.isfile(path):
            return f"{shown(folder + name)} is a link to {shown(os.readlink(path))}, which is no file that can be read"
        if os.path.lexists(path) and not os.path.isfile(path):
            return f"{shown(folder + name)} is a pipe or a device, not a file"
    return ""


def _nearest(name: str, near: dict[str, list[_There]], folders: Sequence[str], by_path: bool) -> str:
    """The nearest candidate and in what it differs; "" if there is none."""
    if not name.strip():
        return "the cell is empty"
    found = near.get(_key(name)) or near.get(_number(_key(name))) or []
    described = [(_differences(name, there, folders, by_path), there) for there in found]
    if len(found) > 1:  # where many files have one name, that it is the same says nothing
        described = [pair for pair in described if ELSEWHERE not in pair[0]]
    if not described:
        return ""
    differences, there = min(described, key=lambda pair: (len(pair[0]), pair[1]))
    more = f"; {len(described) - 1:,} more are like it" if len(described) > 1 else ""
    return f"there is {_place(there)} ({', '.join(differences)}){more}"


def _differences(name: str, there: _There, folders: Sequence[str], by_path: bool) -> list[str]:
    """In what a wanted name differs from a file that is there, for people."""
    clean = name.strip().replace("\\", "/")
    here, found = clean.rpartition("/")[2], there.path.rpartition("/")[2]
    said = []
    if name != name.strip():
        said.append("the table has blanks around it")
    if "\\" in name and "\\" not in there.path:
        said.append("the path is written with backslashes: write /")
    said += _in_name(here, found)
    said += _in_folder(clean, there) if by_path else _in_source(clean, there, folders)
    return said or ["it came while the folder was read: run again"]


def _in_name(wanted: str, found: str) -> list[str]:
    """Differences of two file names whose keys are the same."""
    said = []
    stem, ending = _split(wanted)
    other, its = _split(found)
    if ending != its:
        if ending.lower() == its.lower():
            said.append("capital ending" if its.isupper() else "the table has a capital ending")
        elif not ending:
            said.append(f"the table's ids need the ending {its}")
        elif not its:
            said.append(f"without ending {ending}")
        else:
            said.append(f"its ending is {its}")
        if its.lower() not in ("", *IMAGE_ENDINGS):
            said.append(
                f"{its} is not read: " + ("unpack it" if its.lower() in PACKED_ENDINGS else "save it as PNG")
            )
    if stem != other:
        if unicodedata.normalize("NFC", stem) != stem or unicodedata.normalize("NFC", other) != other:
            said.append("other Unicode form of the same letters")
        one, two = (unicodedata.normalize("NFC", text).strip() for text in (stem, other))
        if other != other.strip():
            said.append("blanks in the file's name")
        if one != two and one.casefold() == two.casefold():
            said.append("capital and small letters differ")
        elif one != two:
            said.append("zeros in front differ")
    return said


def _in_folder(wanted: str, there: _There) -> list[str]:
    """Differences of the folders, where images are looked for by their paths."""
    parts = [part for part in wanted.split("/")[:-1] if part not in ("", ".")]
    own = there.path.split("/")[:-1]
    if wanted.startswith("/") or wanted[1:3] == ":/":
        return ["write the path below data.root"]
    if ".." in parts:
        return ["the path leads out with .."]
    if parts == own:
        return []
    if [part.casefold() for part in parts] == [part.casefold() for part in own]:
        return ["capital and small letters of the folders differ"]
    if len(parts) > len(own) and parts[len(parts) - len(own) :] == own:
        return [f"without {shown('/'.join(parts[: len(parts) - len(own)]))}/ in front"]
    if len(own) > len(parts) and own[len(own) - len(parts) :] == parts:
        deeper = len(own) - len(parts)
        return ["one folder deeper" if deeper == 1 else f"{deeper} folders deeper"]
    return [ELSEWHERE]


def _in_source(wanted: str, there: _There, folders: Sequence[str]) -> list[str]:
    """Differences of the place, where images are looked for by their names."""
    if "/" in wanted:
        return ["image ids are names of files, without folders"]
    folder = there.path.rpartition("/")[0] + "/"
    if there.archive or folder in folders:
        return []
    if any(folder.startswith(source) for source in folders):
        return ["one folder deeper than is looked: move the images up"]
    return ["images are looked for in images/, images_*/ and archives images*"]


def _split(name: str) -> tuple[str, str]:
    """A file name without its ending, and the ending of an image as it is written ("" for none)."""
    name = name.rstrip()
    for ending in (*IMAGE_ENDINGS, *OTHER_ENDINGS):
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def _key(name: str) -> str:
    """What is the same of names that people take for one: no folder, ending, capitals, blanks or Unicode form."""
    stem, _ = _split(name.replace("\\", "/").rpartition("/")[2])
    return unicodedata.normalize("NFC", stem.strip()).casefold()


def _number(key: str) -> str:
    """A key without the zeros in front that spreadsheets take away."""
    return key.lstrip("0") or "0"
