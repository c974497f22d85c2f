"""Boxes of findings, in the layout of NIH's BBox_List_2017.csv or of VinDr-CXR's annotations, mapped to the prepared
images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ral.compute.dask_pool import Pool, Report
from ral.config.data import PreprocessParams
from ral.data.dataset_info import BoxCounts
from ral.data.images.decode import extent
from ral.data.images.locate import read_images
from ral.data.images.pack import image_name
from ral.data.images.resize import Fit, placement
from ral.data.privacy import Pseudonymizer
from ral.data.sources.base import Source
from ral.data.sources.text import check_columns, read_header, read_text
from ral.errors import UserError
from ral.labels import LABEL_SETS, NIH_FINDINGS
from ral.suggest import did_you_mean

# Columns of boxes.parquet; the coordinates are in pixels of the prepared image.
COORDINATES = ("x_min", "y_min", "x_max", "y_max")
COLUMNS = ("image_id", "finding", "reader", "votes", *COORDINATES)

NIH_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
# NIH's table of boxes calls a finding differently than its table of labels.
NIH_NAMES = {"Infiltrate": "Infiltration"}
VINDR_COLUMNS = ("image_id", "class_name", *COORDINATES)
VINDR_READER = "rad_id"
VINDR_NONE = "No finding"

# How far a box may reach beyond its image, as a share of the side: rounding. It is then cut.
BEYOND = 0.01


def read_boxes(
    source: Source, findings: Sequence[str], image_ids: "pd.Series[str] | None" = None
) -> pd.DataFrame | None:
    """Read the box tables of `data.boxes`; None if it is null.

    Args:
        source: the source, whose names of findings the tables may use too.
        findings: boxes of other findings are left out.
        image_ids: rows of other images are skipped unseen, because they may be of excluded patients; None: none are.

    Returns:
        image_id as in the table, finding, reader ("" if not known), votes (readers that must agree on a place for it
        to count), x_min, y_min, x_max, y_max (pixels of the image file), file and row.

    Raises:
        UserError: a file is missing or has another layout; a finding is unknown; a coordinate is not a number, or a
            box is empty.
    """
    config = source.config
    if config.boxes is None:
        return None
    names = {name: name for name in NIH_FINDINGS} | NIH_NAMES
    names |= {original: finding for finding, original in LABEL_SETS["vindr"]["vindr"].items()}
    own = source.label_set if config.source in LABEL_SETS else config.table.findings
    names |= {original: finding for finding, original in own.items()} | {finding: finding for finding in own}
    parts = []
    for name in config.boxes.files:
        path = Path(config.root) / name
        if not path.is_file():
            raise UserError(
                f"{path} (data.boxes) does not exist. Put the table of boxes there, or correct the name."
            )
        table = _read_table(path, config.readers == "majority")
        if image_ids is not None:
            table = table[table["image_id"].isin(image_ids)].reset_index(drop=True)
        parts.append(_checked(path, table, names))
    boxes = pd.concat(parts, ignore_index=True)
    return boxes[boxes["finding"].isin(findings)].reset_index(drop=True)


def _read_table(path: Path, majority: bool) -> pd.DataFrame:
    """Rows of a table as text, with the columns of the result; the layout is recognised by the header."""
    header = read_header(path)
    if NIH_COLUMNS[2] in header:
        check_columns(path, NIH_COLUMNS, header)
        return _read_nih(path)
    if VINDR_COLUMNS[-1] in header:
        check_columns(path, VINDR_COLUMNS, header)
        return _read_vindr(path, VINDR_READER in header, majority)
    raise UserError(
        f"{path} (data.boxes) has none of the known layouts: neither `Image Index,Finding Label,Bbox [x,y,w,h]` (NIH's "
        f"BBox_List_2017.csv) nor {', '.join(VINDR_COLUMNS)} (VinDr-CXR's annotations)."
    )


def _read_nih(path: Path) -> pd.DataFrame:
    table = read_text(path, NIH_COLUMNS)
    numbers = _numbers(path, table, NIH_COLUMNS[2:])
    left, top, width, height = (numbers[name] for name in NIH_COLUMNS[2:])
    columns = (left, top, left + width, top + height)
    return pd.DataFrame(
        {
            "image_id": table["Image Index"],
            "finding": table["Finding Label"],
            "reader": "",
            "votes": 1,
            **dict(zip(COORDINATES, columns, strict=True)),
            "row": table["row"],
        }
    )


def _read_vindr(path: Path, with_reader: bool, majority: bool) -> pd.DataFrame:
    columns = [*VINDR_COLUMNS, *([VINDR_READER] if with_reader else [])]
    table = read_text(path, columns)
    reader = table[VINDR_READER] if with_reader else pd.Series("", index=table.index, dtype="str")
    # A reader who saw nothing has a row too.
    readers = reader.groupby(table["image_id"]).transform("nunique")
    votes = readers // 2 + 1 if majority else pd.Series(1, index=table.index)
    found = (table["class_name"] != VINDR_NONE).to_numpy()
    table = table[found].reset_index(drop=True)
    return pd.DataFrame(
        {
            "image_id": table["image_id"],
            "finding": table["class_name"],
            "reader": reader[found].to_numpy(),
            "votes": votes[found].to_numpy(),
            **_numbers(path, table, COORDINATES),
            "row": table["row"],
        }
    )


def _numbers(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> dict[str, "pd.Series[float]"]:
    """Columns of a table as float64."""
    numbers = {}
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(values.to_numpy()))
        if len(wrong):
            row = table.iloc[wrong[0]]
            raise UserError(
                f"{path}, row {row['row']}: `{name}` is `{row[name]}`, but it must be a number of pixels. Correct the "
                "row, or remove it."
            )
        numbers[name] = values
    return numbers


def _checked(path: Path, table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A table with canonical findings, whose boxes are not empty."""
    unknown = np.flatnonzero(~table["finding"].isin(list(names)))
    if len(unknown):
        row = table.iloc[unknown[0]]
        hint = did_you_mean(row["finding"], names)
        raise UserError(
            f"{path}, row {row['row']}: the finding `{row['finding']}` is not known.{hint} Correct the name, or remove "
            "the row."
        )
    width, height = table["x_max"] - table["x_min"], table["y_max"] - table["y_min"]
    empty = np.flatnonzero((width <= 0) | (height <= 0))
    if len(empty):
        row = table.iloc[empty[0]]
        raise UserError(
            f"{path}, row {row['row']}: the box of {row['finding']} on {row['image_id']} is empty "
            f"({width.iloc[empty[0]]:g} x {height.iloc[empty[0]]:g} pixels). Correct the row, or remove it."
        )
    return table.assign(finding=table["finding"].map(dict(names)), file=str(path))


def map_boxes(
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    sizes: np.ndarray,
    size: int,
    fit: Fit,
) -> tuple[pd.DataFrame, BoxCounts]:
    """Map boxes to the prepared images.

    Args:
        boxes: the result of `read_boxes`, of the findings that are used.
        images: the images in use, with image_id.
        sizes: width and height that the coordinates of each box refer to, int64 [boxes, 2]; 0 where the image is not
            in use.
        size: height and width of a prepared image.
        fit: how images are made square.

    Returns:
        The columns `COLUMNS`, ordered by image, finding and reader, and what was left out.

    Raises:
        UserError: a box lies beyond its image, or no box is of an image in use.
    """
    used = boxes["image_id"].isin(images["image_id"]).to_numpy()
    if not used.any():
        example = f" (such as `{boxes['image_id'].iloc[0]}`)" if len(boxes) else ""
        raise UserError(
            f"data.boxes: no box is of an image and a finding that are used{example}; image ids are such as "
            f"`{images['image_id'].iloc[0]}`. Correct the ids, or set data.boxes to null."
        )
    mapped, sizes = boxes[used].reset_index(drop=True), sizes[used]
    for low, high, side in (("x_min", "x_max", sizes[:, 0]), ("y_min", "y_max", sizes[:, 1])):
        beyond = np.flatnonzero((mapped[low] < -BEYOND * side) | (mapped[high] > (1 + BEYOND) * side))
        if len(beyond):
            row, pixels = mapped.iloc[beyond[0]], side[beyond[0]]
            raise UserError(
                f"{row['file']}, row {row['row']}: the box of {row['finding']} on {row['image_id']} reaches from "
                f"{row[low]:g} to {row[high]:g} along {low[0]}, but the image has {pixels} pixels. Boxes are in pixels "
                "of the image as published: if the images were made smaller, set data.boxes.side (NIH: 1024); else "
                "correct the row, or remove it."
            )
    places = {pair: placement(pair[1], pair[0], size, fit) for pair in set(map(tuple, sizes.tolist()))}
    scale_x, scale_y, left, top = np.array([places[pair] for pair in map(tuple, sizes.tolist())]).T
    for name in COORDINATES:
        scale, offset = (scale_x, left) if name.startswith("x") else (scale_y, top)
        inside = np.clip(mapped[name], 0, sizes[:, int(name.startswith("y"))])
        mapped[name] = np.clip(inside * scale + offset, 0, size).round(6)
    shown = ((mapped["x_max"] > mapped["x_min"]) & (mapped["y_max"] > mapped["y_min"])).to_numpy()
    result = mapped.loc[shown, list(COLUMNS)]
    result = result.sort_values(list(COLUMNS), ignore_index=True)
    counts = BoxCounts(
        boxes=len(result),
        images=result["image_id"].nunique(),
        no_image=int((~used).sum()),
        cut_off=int((~shown).sum()),
    )
    return result, counts


def image_sizes(root: Path, images: pd.DataFrame, pool: Pool) -> np.ndarray:
    """Width and height of images, int64 [images, 2]; reads the files, but decodes no pixels.

    Args:
        root: the data folder.
        images: rows of `ral.data.images.locate.list_images`, in its order.
        pool: executes the tasks.
    """
    archive = images["path"].where(images["member"] != "", "")
    groups = [part for _, part in images.groupby(archive.to_numpy(), sort=False)]
    items = [(root.absolute(), part) for part in groups]
    parts = pool.run(read_sizes, items, [0] * len(items), lambda _: None)
    sizes = np.zeros((len(images), 2), np.int64)
    position = pd.Series(np.arange(len(images)), index=images.index)
    for part, found in zip(groups, parts, strict=True):
        sizes[position[part.index]] = found
    return sizes


def read_sizes(root: Path, images: pd.DataFrame, report: Report) -> np.ndarray:
    """Width and height of images of one archive, or of single files; a Dask task.

    Args:
        root: the data folder.
        images: rows of the list of images.
        report: unused; images are counted when they are decoded.
    """
    names = [
        image_name(root, path, member) for path, member in zip(images["path"], images["member"], strict=True)
    ]
    contents = read_images(root, images)
    return np.array([extent(content, name) for content, name in zip(contents, names, strict=True)])


def write_boxes(
    path: Path,
    tables: pd.DataFrame | None,
    images: pd.DataFrame,
    params: PreprocessParams,
    pool: Pool,
    pseudonymizer: Pseudonymizer,
) -> BoxCounts | None:
    """Write boxes.parquet: the boxes of the images in use, in pixels of the prepared images; nothing without tables.

    Args:
        path: file to write.
        tables: the result of `read_boxes`.
        images: rows of `ral.data.images.locate.list_images` of the images in use, in its order.
        params: the sections data and preprocess.
        pool: reads the images, if their sizes are needed.
        pseudonymizer: makes the ids.

    Raises:
        UserError: see `map_boxes`.
    """
    if tables is None or params.data.boxes is None:
        return None
    side = params.data.boxes.side
    with_boxes = images[images["image_id"].isin(tables["image_id"])]
    if side is None and len(with_boxes):
        known = image_sizes(Path(params.data.root), with_boxes, pool)
    else:
        known = np.full((len(with_boxes), 2), side or 0)
    index = pd.Index(with_boxes["image_id"]).get_indexer(tables["image_id"])
    sizes = np.zeros((len(tables), 2), np.int64)
    sizes[index >= 0] = known[index[index >= 0]]
    boxes, counts = map_boxes(tables, images, sizes, params.preprocess.size, params.preprocess.fit)
    boxes = boxes.assign(image_id=pseudonymizer.ids(boxes["image_id"]))
    # Tables are not compressed: the output of a compressor depends on its build.
    boxes.to_parquet(path, index=False, compression=None)
    return counts
