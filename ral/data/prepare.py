"""Turns the label table into studies.parquet with its split, and the images into pixel shards, with Dask."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from dask import delayed

from ral.compute.dask_pool import Pool, Report, open_pool
from ral.config.dask import DaskTarget
from ral.config.data import PreprocessParams
from ral.data.baseline import read_split
from ral.data.boxes import read_boxes, write_boxes
from ral.data.dataset_info import (
    ClassCounts,
    write_class_counts,
)
from ral.data.description import Prepared
from ral.data.exclusions import Exclusions
from ral.data.images.decode import dicom_start
from ral.data.images.file_hashes import FileHashCache
from ral.data.images.pack import PackResult, image_name, pack
from ral.data.privacy import Pseudonymizer
from ral.data.sources.base import UNCERTAIN, Source, open_source
from ral.data.splits.assign import Splitter
from ral.data.splits.methods import SPLITS
from ral.data.splits.thin import THINNED, thinned_rows
from ral.data.splits.withheld import usable_views, withheld_rows
from ral.data.tables.duplicates import SameImages
from ral.data.tables.spill import ImageIdIndex, SpillBuffer, StudiesWriter
from ral.errors import UserError
from ral.labels import PHANTOM_PREFIX

# Columns of studies.parquet; the findings follow.
COLUMNS = ("image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split")

# Leading bytes needed to recognize a DICOM file.
DICOM_HEAD_BYTES = 136


def prepare(
    params: PreprocessParams,
    images: pd.DataFrame,
    out: Path,
    target: DaskTarget,
    progress: Report,
    state_dir: Path | None = None,
    baseline: Path = Path("baseline"),
) -> None:
    """Write studies.parquet, split.parquet, class_counts.json, quarantine.parquet, dataset.json and shards/; also
    uncertain.parquet with data.uncertain: keep, if there are uncertain labels, and boxes.parquet if there are boxes
    (data.boxes).

    Args:
        params: data, split and preprocess sections.
        images: location of each image, in stored order (`ral.data.images.locate.list_images`).
        out: an existing empty folder.
        target: where Dask runs; it does not affect the output.
        progress: called with the number of newly packed images.
        state_dir: private folder that caches decoded images for later runs; None disables the cache.
        baseline: folder with the accepted split, if there is one.

    Raises:
        UserError: an image is bad (see preprocess.on_bad_image), an archive is damaged, the split is unusable, or a
            box is wrong.
    """
    root, source = Path(params.data.root), open_source(params.data)
    findings = source.findings()
    pseudonymizer, exclusions = Pseudonymizer.of(params.data), Exclusions.of(params.data)
    withheld = withheld_rows(source, exclusions, params.split, FileHashCache(state_dir))
    tables = read_boxes(source, findings, images["image_id"] if exclusions else None)
    splitter = Splitter(source, images, findings, params.split, pseudonymizer, read_split(baseline), withheld)
    with open_pool(target) as pool, SpillBuffer(out / ".rows") as buffer:
        included, excluded = read_table(source, images, exclusions, buffer, pool)
        if included.empty:
            raise UserError(
                f"No usable image in {root}. All {len(excluded)} rows were excluded: "
                f"{count_reasons(excluded['reason'])}. Check data.root and data.views."
            )
        # Fail before images are decoded, which may take hours.
        included["split"] = splitter.split(included, splitter.same_images(included))
        packing = images_to_pack(included, images, params, pseudonymizer)
        packed = pack(root, packing, params.preprocess, out, pool, progress, state_dir)
        rows, bad = len(included) + len(excluded), _named(included[~packed.good], images)
        final = split_packed(included, packed, splitter, params, findings, out / "shards")
        included, packed = final.included, final.packed
        if len(final.thinned):
            excluded = pd.concat([excluded, _named(final.thinned, images).assign(reason=THINNED)])
        keep, used = params.data.uncertain == "keep", images.iloc[included["stored"]]
        counts = write_studies(
            out / "studies.parquet", buffer, included, images, findings, pseudonymizer, keep
        )
        boxes = write_boxes(out / "boxes.parquet", tables, used, params, pool, pseudonymizer)
    write_split(out / "split.parquet", included, pseudonymizer)
    reasons = write_quarantine(out / "quarantine.parquet", excluded, bad, packed, pseudonymizer)
    write_class_counts(out / "class_counts.json", counts)
    phantom = bool(_ids(included, images).str.startswith(PHANTOM_PREFIX).any())
    same = splitter.describe(final.same, included)
    prepared = Prepared(included, packing, packed, rows, reasons, same, boxes)
    prepared.info(params, findings, phantom, counts, out / "studies.parquet").write(out / "dataset.json")


class FinalSplit(NamedTuple):
    """What is used of the packed images."""

    included: pd.DataFrame
    """Rows with good images, with their split."""
    packed: PackResult
    """Without the images that `split.thin` leaves out."""
    same: SameImages
    """Images of several patients."""
    thinned: pd.DataFrame
    """Rows that `split.thin` leaves out."""


def split_packed(
    included: pd.DataFrame,
    packed: PackResult,
    splitter: Splitter,
    params: PreprocessParams,
    findings: Sequence[str],
    shards: Path,
) -> FinalSplit:
    """Split the good images: as if bad ones had never been there, and with images that are equal pixel by pixel.

    Args:
        included: rows of all images, split before they were decoded.
        packed: result of packing them.
        splitter: of the rows.
        params: data, split and preprocess sections.
        findings: label columns.
        shards: folder of the shards; rewritten if images are thinned out.

    Raises:
        UserError: the split is unusable.
    """
    size, bad = params.preprocess.size, not packed.good.all()
    included = included[packed.good].reset_index(drop=True)
    pixels = packed.same_pixels(shards, size)
    same = splitter.same_images(included, pixels)
    if bad or same.images:
        included["split"] = splitter.split(included, same, pixels)
    # Last, so that validation and test are those of the data that is not thinned.
    leaves = thinned_rows(included, findings, params.split)
    thinned = included[leaves]
    if leaves.any():
        included = included[~leaves].reset_index(drop=True)
        packed = packed.without(leaves, shards, size)
        same = splitter.same_images(included, packed.same_pixels(shards, size))
    return FinalSplit(included, packed, same, thinned)


def images_to_pack(
    included: pd.DataFrame, images: pd.DataFrame, params: PreprocessParams, pseudonymizer: Pseudonymizer
) -> pd.DataFrame:
    """Locations of the included images, under the ids that the shards contain, and which to invert.

    Raises:
        UserError: see `find_inverted`.
    """
    all_included = len(included) == len(images)  # then no copy is needed
    packing = images if all_included else images.iloc[included["stored"]].reset_index(drop=True)
    packing = packing.assign(image_id=pseudonymizer.ids(packing["image_id"]))
    if "monochrome1" not in included:
        return packing
    root, choice = Path(params.data.root), params.preprocess.monochrome1
    return packing.assign(invert=find_inverted(included, packing, root, choice))


def write_split(path: Path, included: pd.DataFrame, pseudonymizer: Pseudonymizer) -> None:
    """Write the split of each patient."""
    patients = pseudonymizer.table(included[["patient_id", "split"]].drop_duplicates())
    # Tables are not compressed: the output of a compressor depends on its build.
    patients.sort_values("patient_id").to_parquet(path, index=False, compression=None)


def write_quarantine(
    path: Path,
    excluded: pd.DataFrame,
    bad: pd.DataFrame,
    packed: PackResult,
    pseudonymizer: Pseudonymizer,
) -> "pd.Series[str]":
    """Write excluded rows and bad images with the reason.

    Args:
        path: file to write.
        excluded: image_id, patient_id and reason of the excluded rows.
        bad: image_id and patient_id of the bad images.
        packed: their faults.
        pseudonymizer: makes the ids.

    Returns:
        The reasons without the specifics of an image.
    """
    reasons, table = excluded["reason"], pseudonymizer.table(excluded)
    if len(bad):
        reasons = pd.concat([reasons, pd.Series(packed.reason)])
        table = pd.concat([table, pseudonymizer.table(bad).assign(reason=packed.explained)])
    table.to_parquet(path, index=False, compression=None)
    return reasons


def find_inverted(included: pd.DataFrame, packing: pd.DataFrame, root: Path, choice: str) -> np.ndarray:
    """Which images to invert because they are MONOCHROME1 in the table, bool; DICOM files have a tag for it.

    Args:
        included: rows of the table, with monochrome1.
        packing: locations of their images, in the same order.
        root: the data folder.
        choice: `preprocess.monochrome1`.

    Raises:
        UserError: there are such images and preprocess.monochrome1 is fail.
    """
    monochrome1 = included["monochrome1"].to_numpy(bool).copy()
    for index in np.flatnonzero(monochrome1):
        path, member = packing["path"].iloc[index], packing["member"].iloc[index]
        monochrome1[index] = not _is_dicom(root, path, member)
    if monochrome1.any() and choice == "fail":
        path, member = packing[["path", "member"]].iloc[int(np.flatnonzero(monochrome1)[0])]
        raise UserError(
            f"{monochrome1.sum()} of {len(monochrome1)} images are MONOCHROME1 according to the table: high "
            "values are dark, which PNG "
            f"and JPEG cannot express. The first: {image_name(root, path, member)}. Look at some of them and set "
            "preprocess.monochrome1: invert, if the lungs are bright (pixels as stored in DICOM); keep, if "
            "the lungs are "
            "dark (pixels were inverted when the files were made); fail, the default, stops here."
        )
    return monochrome1 & (choice == "invert")


def _is_dicom(root: Path, path: str, member: str) -> bool:
    """Whether an image is DICOM: files are recognized by their first bytes, members of archives by their names."""
    if member:
        return member.lower().endswith((".dcm", ".dicom"))
    with (root / path).open("rb") as stream:
        return dicom_start(stream.read(DICOM_HEAD_BYTES)) is not None


def read_table(
    source: Source, images: pd.DataFrame, exclusions: Exclusions, buffer: SpillBuffer, pool: Pool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a source's table in chunks and decide which rows are excluded, and why.

    Args:
        source: the source.
        images: rows of `ral.data.images.locate.list_images`.
        exclusions: patients whose rows are skipped, as if they were not in the table.
        buffer: receives the included rows, all columns, with `stored`: the index of the image in `images`.
        pool: converts the chunks.

    Returns:
        The included rows in stored order, with the columns that the split needs: stored, patient_id, official and
        monochrome1 if the source has them, and the findings as int8 (-1: unknown). The excluded rows in the order of
        the table: image_id, patient_id and reason.
    """
    index = ImageIdIndex(images["image_id"])
    views = usable_views(source.config.views)
    findings = source.findings()
    convert = delayed(source.to_studies, pure=False)
    included, excluded = [], []
    for studies in pool.stream(convert(chunk, mark_uncertain=True) for chunk in source.iter_chunks()):
        block = exclusions.kept(studies, "patient_id")
        stored = index.find(block["image_id"])
        reason = pd.Series("", index=block.index, dtype="str")
        reason[stored < 0] = "no image"
        reason[~block["view"].isin(views)] = "view not in data.views"
        block, is_excluded = block.assign(stored=stored), reason != ""
        excluded.append(block.loc[is_excluded, ["image_id", "patient_id"]].assign(reason=reason[is_excluded]))
        usable = block[~is_excluded]
        buffer.add(usable)
        # To the split, uncertain (-1) is unknown.
        labels = {name: usable[name].fillna(-1).astype(np.int8) for name in findings}
        columns = ["stored", "patient_id", *(name for name in ("official", "monochrome1") if name in usable)]
        included.append(usable[columns].assign(**labels))
    return pd.concat(included).sort_values("stored", ignore_index=True), pd.concat(
        excluded, ignore_index=True
    )


def write_studies(
    path: Path,
    buffer: SpillBuffer,
    included: pd.DataFrame,
    images: pd.DataFrame,
    findings: Sequence[str],
    pseudonymizer: Pseudonymizer,
    keep_uncertain: bool = False,
) -> ClassCounts:
    """Write studies.parquet chunk by chunk: the buffered rows with their split and the locations of their images.

    Args:
        path: file to write.
        buffer: the rows that `read_table` included.
        included: which of them to write, by `stored`, and their split.
        images: rows of `ral.data.images.locate.list_images`.
        findings: columns of labels.
        pseudonymizer: makes the ids.
        keep_uncertain: whether labels of the rows may be UNCERTAIN. In studies.parquet they are unknown;
            uncertain.parquet beside it, written if there is one, has image_id and bool columns in the same order.

    Returns:
        Number of images, and of positives, negatives and unknown labels per finding, for each split.
    """
    columns, marks = list(findings), []
    with StudiesWriter(path, findings, SPLITS) as writer:
        for rows in buffer.in_order():
            ends = [rows["stored"].iloc[0], rows["stored"].iloc[-1] + 1]
            first, last = np.searchsorted(included["stored"], ends)
            selected = included.iloc[first:last]
            if len(selected) < len(rows):  # some images turned out to be bad
                rows = rows[rows["stored"].isin(selected["stored"])]
            locations = images[["path", "member"]].iloc[selected["stored"]]
            studies = rows.assign(
                path=locations["path"].array,
                member=locations["member"].array,
                split=selected["split"].array,
            )[[*COLUMNS, *findings]]
            studies = pseudonymizer.table(studies)
            if keep_uncertain:
                uncertain = studies[columns] == UNCERTAIN
                studies[columns] = studies[columns].mask(uncertain)
                marks.append(uncertain.assign(image_id=studies["image_id"])[["image_id", *columns]])
            writer.add(studies)
    if any(part[columns].to_numpy().any() for part in marks):
        pd.concat(marks).to_parquet(path.with_name("uncertain.parquet"), index=False, compression=None)
    return writer.class_counts


def _ids(included: pd.DataFrame, images: pd.DataFrame) -> "pd.Series[str]":
    """Image ids of rows, looked up by `stored`."""
    return images["image_id"].iloc[included["stored"]].set_axis(included.index)


def _named(included: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Image and patient ids of rows."""
    return included.assign(image_id=_ids(included, images))[["image_id", "patient_id"]]


def count_reasons(reasons: pd.Series) -> str:
    """Format reasons with their counts: "97125 no image, 3 view not in data.views"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons[reasons != ""].value_counts().items())
