"""Describes missing images: where they were looked for, and the most similar file found."""

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

# Extensions that other tools use for images; none is supported.
PACKED_ENDINGS = tuple(wanted_extension + ".gz" for wanted_extension in IMAGE_ENDINGS)
OTHER_ENDINGS = (
    *PACKED_ENDINGS,
    *[".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".npy", ".nii.gz", ".nii", ".ima"],
)

ELSEWHERE = "in another folder"


class _Candidate(NamedTuple):
    """A file that may be the image: its path, and its archive or ""."""

    path: str
    archive: str


def describe_missing(root: Path, wanted: Sequence[str], images: pd.DataFrame, by_path: bool) -> list[str]:
    """Describe missing images: the name that was looked for, and the most similar file.

    The folder is walked once, whatever the number of images; no file is read.

    Args:
        root: the data folder.
        wanted: image ids or paths below `root`, as in the table.
        images: rows of `ral.data.images.locate.list_images`, for members of archives.
        by_path: whether `wanted` contains paths.

    Returns:
        One line of text per image.

    Raises:
        UserError: `root` is missing.
        OSError: a folder cannot be read.
    """
    if not wanted:
        return []
    keys = {key for name in wanted for key in (_key(name), _number(_key(name)))}
    similar: dict[str, list[_Candidate]] = {}
    count, first, archive = 0, "", ""
    for candidate in _candidates(root, images):
        name = candidate.path.rpartition("/")[2]
        if is_image(name):
            count, first = count + 1, first or _describe(candidate)
        elif (
            name.lower().endswith(ARCHIVE_ENDINGS)
            and not candidate.archive
            and (by_path or not is_archive(candidate.path))
        ):
            archive = archive or candidate.path
        key = _key(name)
        if key in keys:
            similar.setdefault(key, []).append(candidate)
        elif (number := _number(key)) in keys:
            similar.setdefault(number, []).append(candidate)
    no_match = (
        f"no similar file found; the first of {count:,} images is {first}" if count else "no images found"
    )
    if archive:
        no_match += f"; {shown(archive)} is not searched: unpack it"
    folders = [""] if by_path else _folders(root)
    return [
        f"looked for {shown(_looked_for(name, folders))}; "
        + (_special_file(root, name, folders) or _nearest(name, similar, folders, by_path) or no_match)
        for name in wanted
    ]


def _candidates(root: Path, images: pd.DataFrame) -> Iterator[_Candidate]:
    for folder, names in walk(root):
        parent = folder.relative_to(root).as_posix()
        for name in names:
            yield _Candidate(name if parent == "." else f"{parent}/{name}", "")
    members = images[images["member"] != ""]
    for path, member in zip(members["path"].tolist(), members["member"].tolist(), strict=True):
        yield _Candidate(member, path)


def _folders(root: Path) -> list[str]:
    """Folders searched for images by name, relative to `root`, each with a trailing slash."""
    try:
        return [folder.relative_to(root).as_posix() + "/" for folder in find_sources(root)[1]]
    except UserError:  # none exist
        return []


def _looked_for(name: str, folders: Sequence[str]) -> str:
    return f"{folders[0]}{name}" if len(folders) == 1 else name


def _describe(candidate: _Candidate) -> str:
    return shown(candidate.path) + (f" in {shown(candidate.archive)}" if candidate.archive else "")


def _special_file(root: Path, name: str, folders: Sequence[str]) -> str:
    """Describe what is at the exact path if it is not a regular file; "" if it does not exist."""
    if not name.strip() or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return ""
    for folder in folders:
        path = os.path.join(root, folder, name)  # pathlib raises an error if a name is too long
        if os.path.isdir(path):
            return f"{shown(folder + name)} is a folder"
        if os.path.islink(path) and not os.path.isfile(path):
            return f"{shown(folder + name)} is a link to {shown(os.readlink(path))}, which is not a readable file"
        if os.path.lexists(path) and not os.path.isfile(path):
            return f"{shown(folder + name)} is a pipe or a device, not a file"
    return ""


def _nearest(name: str, similar: dict[str, list[_Candidate]], folders: Sequence[str], by_path: bool) -> str:
    """Describe the most similar candidate and its differences; "" if candidate is none."""
    if not name.strip():
        return "the cell is empty"
    matches = similar.get(_key(name)) or similar.get(_number(_key(name))) or []
    described = [(_differences(name, candidate, folders, by_path), candidate) for candidate in matches]
    if len(matches) > 1:  # a name that many files share is no evidence
        described = [pair for pair in described if ELSEWHERE not in pair[0]]
    if not described:
        return ""
    differences, candidate = min(described, key=lambda pair: (len(pair[0]), pair[1]))
    more = f"; {len(described) - 1:,} more similar files" if len(described) > 1 else ""
    return f"found {_describe(candidate)} ({', '.join(differences)}){more}"


def _differences(name: str, candidate: _Candidate, folders: Sequence[str], by_path: bool) -> list[str]:
    """Differences between a wanted name and a candidate."""
    clean = name.strip().replace("\\", "/")
    wanted_name, candidate_name = clean.rpartition("/")[2], candidate.path.rpartition("/")[2]
    differences = []
    if name != name.strip():
        differences.append("spaces around the name in the table")
    if "\\" in name and "\\" not in candidate.path:
        differences.append("backslashes in the path: use /")
    differences += _name_differences(wanted_name, candidate_name)
    differences += (
        _path_differences(clean, candidate) if by_path else _folder_differences(clean, candidate, folders)
    )
    return differences or ["the file appeared while the folder was scanned: run again"]


def _name_differences(wanted: str, candidate: str) -> list[str]:
    """Differences between two file names with the same key."""
    differences = []
    stem, wanted_extension = _split(wanted)
    candidate_stem, extension = _split(candidate)
    if wanted_extension != extension:
        if wanted_extension.lower() == extension.lower():
            differences.append(
                "upper-case extension" if extension.isupper() else "upper-case extension in the table"
            )
        elif not wanted_extension:
            differences.append(f"add the extension {extension} to the ids in the table")
        elif not extension:
            differences.append(f"no extension {wanted_extension}")
        else:
            differences.append(f"extension {extension}")
        if extension.lower() not in ("", *IMAGE_ENDINGS):
            differences.append(
                f"{extension} is not supported: "
                + ("unpack it" if extension.lower() in PACKED_ENDINGS else "convert it to PNG")
            )
    if stem != candidate_stem:
        if (
            unicodedata.normalize("NFC", stem) != stem
            or unicodedata.normalize("NFC", candidate_stem) != candidate_stem
        ):
            differences.append("different Unicode normalization")
        normal_stem, normal_candidate = (
            unicodedata.normalize("NFC", text).strip() for text in (stem, candidate_stem)
        )
        if candidate_stem != candidate_stem.strip():
            differences.append("spaces around the file name")
        if normal_stem != normal_candidate and normal_stem.casefold() == normal_candidate.casefold():
            differences.append("upper and lower case differ")
        elif normal_stem != normal_candidate:
            differences.append("leading zeros differ")
    return differences


def _path_differences(wanted: str, candidate: _Candidate) -> list[str]:
    """Differences between the folders of two paths."""
    parts = [part for part in wanted.split("/")[:-1] if part not in ("", ".")]
    candidate_parts = candidate.path.split("/")[:-1]
    if wanted.startswith("/") or wanted[1:3] == ":/":
        return ["make the path relative to data.root"]
    if ".." in parts:
        return ["the path leaves the data folder through .."]
    if parts == candidate_parts:
        return []
    if [part.casefold() for part in parts] == [part.casefold() for part in candidate_parts]:
        return ["upper and lower case of the folders differ"]
    if len(parts) > len(candidate_parts) and parts[len(parts) - len(candidate_parts) :] == candidate_parts:
        return [f"without the prefix {shown('/'.join(parts[: len(parts) - len(candidate_parts)]))}/"]
    if len(candidate_parts) > len(parts) and candidate_parts[len(candidate_parts) - len(parts) :] == parts:
        deeper = len(candidate_parts) - len(parts)
        return ["one folder deeper" if deeper == 1 else f"{deeper} folders deeper"]
    return [ELSEWHERE]


def _folder_differences(wanted: str, candidate: _Candidate, folders: Sequence[str]) -> list[str]:
    """Why a file is not found by its name: it is outside the searched folders."""
    if "/" in wanted:
        return ["image ids are file names, without folders"]
    folder = candidate.path.rpartition("/")[0] + "/"
    if candidate.archive or folder in folders:
        return []
    if any(folder.startswith(source) for source in folders):
        return ["one folder deeper than searched: move the images up"]
    return ["images are searched for in images/, images_*/ and archives images*"]


def _split(name: str) -> tuple[str, str]:
    """Split a file name into stem and image extension ("" for none)."""
    name = name.rstrip()
    for wanted_extension in (*IMAGE_ENDINGS, *OTHER_ENDINGS):
        if name.lower().endswith(wanted_extension):
            return name[: -len(wanted_extension)], name[-len(wanted_extension) :]
    return name, ""


def _key(name: str) -> str:
    """Normalize a name for comparison: without folder, extension, case, outer spaces and Unicode form."""
    stem, _ = _split(name.replace("\\", "/").rpartition("/")[2])
    return unicodedata.normalize("NFC", stem.strip()).casefold()


def _number(key: str) -> str:
    """Strip the leading zeros of a key, as spreadsheets do."""
    return key.lstrip("0") or "0"
