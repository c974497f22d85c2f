"""Dask: the label table to studies.parquet with its split, the images to pixel shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dask import delayed

from ral.compute.dask_pool import Pool, Report, open_pool
from ral.config.dask import DaskTarget
from ral.config.data import PreprocessParams
from ral.data.baseline import read_split
from ral.data.images.decode import NOTES, dicom_start
from ral.data.images.pack import image_name, pack, pixel_statistics
from ral.data.images.shards import same_pixels
from ral.data.privacy import pseudonymised, pseudonyms, read_salt
from ral.data.sources.base import Source, open_source
from ral.data.splits.assign import Splitter
from ral.data.splits.methods import SPLITS
from ral.data.tables.spill import ImageIdIndex, SpillBuffer, StudiesWriter
from ral.errors import UserError
from ral.files import write_json
from ral.labels import PHANTOM_PREFIX

# Columns of studies.parquet; the findings follow.
COLUMNS = ("image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split")

# Images named for each note, and bytes that tell a DICOM file.
NOTED, SNIFFED = 3, 136


def prepare(
    params: PreprocessParams,
    images: pd.DataFrame,
    out: Path,
    target: DaskTarget,
    progress: Report,
    state_dir: Path | None = None,
    baseline: Path = Path("baseline"),
) -> None:
    """Write studies.parquet, split.parquet, class_counts.json, quarantine.parquet, dataset.json and shards/.

    Args:
        params: data, split and preprocess sections.
        images: where each image is, in stored order (`ral.data.images.locate.list_images`).
        out: an existing empty folder.
        target: where the work is done; it changes no byte.
        progress: told of every packed image.
        state_dir: private folder in which decoded images are kept for later runs; None keeps none.
        baseline: folder with the accepted split, if there is one.

    Raises:
        UserError: an image is bad (see preprocess.on_bad_image), an archive is damaged, the split cannot be used.
    """
    root = Path(params.data.root)
    source = open_source(params.data)
    findings = source.findings()
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    before = read_split(baseline)
    with open_pool(target) as pool, SpillBuffer(out / ".rows") as spool:
        kept, left = read_table(source, images, params.data.views, spool, pool)
        if kept.empty:
            raise UserError(
                f"No image of {root} is left: of {len(left)} rows, "
                f"{counted(left['left_out'])}. Check data.root and data.views."
            )
        splitter = Splitter(source, images, findings, params.split, salt, before)
        # Before images are decoded, which may take hours: what would stop the run stops it now.
        kept["split"] = splitter.split(kept, splitter.same_images(kept))
        everything = len(kept) == len(images)  # then there is no need of a copy
        packing = images if everything else images.iloc[kept["stored"]].reset_index(drop=True)
        if salt:  # the shards name images too
            packing = packing.assign(image_id=pseudonyms(packing["image_id"], salt))
        if "monochrome1" in kept:
            packing = packing.assign(invert=find_inverted(kept, packing, root, params.preprocess.monochrome1))
        packed = pack(root, packing, params.preprocess, out, pool, progress, state_dir)

        rows = len(kept) + len(left)
        bad = kept.loc[~packed.good, ["stored", "patient_id"]]
        kept = kept[packed.good].reset_index(drop=True)
        shards = [out / "shards" / shard["name"] for shard in packed.shards]
        same = splitter.same_images(kept, same_pixels(shards, params.preprocess.size, packed.sums))
        if (
            len(bad) or same.images
        ):  # the split is that of the images that are left, as if the others had never been there
            kept["split"] = splitter.split(kept, same)
        bad.insert(0, "image_id", _ids(bad, images))
        bad = bad.drop(columns="stored")
        phantom = bool(_ids(kept, images).str.startswith(PHANTOM_PREFIX).any())
        counts = write_studies(out / "studies.parquet", spool, kept, images, findings, salt)
    patients = kept[["patient_id", "split"]].drop_duplicates()
    if salt:
        patients, left, bad = (pseudonymised(table, salt) for table in (patients, left, bad))
    patients = patients.sort_values("patient_id")
    # Tables are not compressed: what a compressor writes depends on how it was built.
    patients.to_parquet(out / "split.parquet", index=False, compression=None)
    reasons = left["left_out"]
    if len(bad):
        reasons = pd.concat([reasons, pd.Series(packed.reason)])
        left = pd.concat([left, bad.assign(left_out=packed.explained)])
    left.rename(columns={"left_out": "reason"}).to_parquet(
        out / "quarantine.parquet", index=False, compression=None
    )
    write_json(out / "class_counts.json", counts)
    mean, deviation = pixel_statistics(
        packed.sums[(kept["split"] == "train").to_numpy()], params.preprocess.size
    )
    write_json(
        out / "dataset.json",
        {
            "source": params.data.source,
            "phantom": phantom,
            "images": len(kept),
            "patients": len(patients),
            "rows": rows,
            "left_out": reasons.value_counts().sort_index().to_dict(),
            "same_image": {
                "images": same.images,
                "apart": same.apart(patients.set_index("patient_id")["split"], salt),
                "patients": same.patients,
                "examples": same.examples(salt),
                "joined": params.split.same_image == "join",
            },
            "inverted": int(packing["invert"].iloc[packed.good.nonzero()[0]].sum())
            if "invert" in packing
            else 0,
            "notes": count_notes(packed.notes, packing["image_id"]),
            "findings": list(findings),
            "size": params.preprocess.size,
            "pixel_mean": mean,
            "pixel_deviation": deviation,
            "split": {
                name: {
                    "images": counts[name]["images"],
                    "patients": int((patients["split"] == name).sum()),
                }
                for name in SPLITS
            },
            "shards": packed.shards,
        },
    )


def find_inverted(kept: pd.DataFrame, packing: pd.DataFrame, root: Path, choice: str) -> np.ndarray:
    """Which images are to be inverted because the table says MONOCHROME1, bool; DICOM files say it themselves.

    Args:
        kept: rows of the table, with monochrome1.
        packing: where their images are, in that order.
        root: the data folder.
        choice: `preprocess.monochrome1`.

    Raises:
        UserError: there are such images, and nobody has chosen what to do.
    """
    dark = kept["monochrome1"].to_numpy(bool).copy()
    for index in np.flatnonzero(dark):
        path, member = packing["path"].iloc[index], packing["member"].iloc[index]
        dark[index] = not _is_dicom(root, path, member)
    if dark.any() and choice == "fail":
        path, member = packing[["path", "member"]].iloc[int(np.flatnonzero(dark)[0])]
        raise UserError(
            f"{dark.sum()} of {len(dark)} images are MONOCHROME1 by the table: high values are dark, and PNG and JPEG cannot "
            f"say so. The first: {image_name(root, path, member)}. Look at some of them, and set preprocess.monochrome1: "
            "invert, if the lungs are bright (the pixels are as they were stored in DICOM); keep, if the lungs are dark "
            "(they were inverted when the files were made); fail, the default, stops here."
        )
    return dark & (choice == "invert")


def _is_dicom(root: Path, path: str, member: str) -> bool:
    """Whether an image is DICOM: a file by its first bytes, whatever it is called; a member of an archive by its name."""
    if member:
        return member.lower().endswith((".dcm", ".dicom"))
    with (root / path).open("rb") as stream:
        return dicom_start(stream.read(SNIFFED)) is not None


def count_notes(notes: Sequence[str], image_ids: "pd.Series[str]") -> dict[str, Any]:
    """How many images each note (`ral.data.images.decode.NOTES`) is of, and the first of them."""
    counts: dict[str, Any] = {}
    for index, note in enumerate(notes):
        for word in filter(None, note.split(",")):
            count = counts.setdefault(word, {"images": 0, "examples": [], "text": NOTES[word]})
            count["images"] += 1
            if len(count["examples"]) < NOTED:
                count["examples"].append(image_ids.iloc[index])
    return dict(sorted(counts.items()))


def read_table(
    source: Source, images: pd.DataFrame, views: Sequence[str], spool: SpillBuffer, pool: Pool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a source's table in pieces, and say of each row whether, and why, it is left out.

    Args:
        source: the source.
        images: rows of `ral.data.images.locate.list_images`.
        views: the views to keep.
        spool: gets the rows that are kept, all columns, with `stored`: the place of the image in `images`.
        pool: converts the pieces.

    Returns:
        Of the rows that are kept, in stored order, what the split is made of: stored, patient_id, the owners'
        split and monochrome1 where there are such columns, and the findings as int8 (-1: unknown). Of the others image_id, patient_id and left_out
        (the reason), in the order of the table.
    """
    places = ImageIdIndex(images["image_id"])
    # An image of which only that it is frontal is known is one of the two.
    views = [*views, "FRONTAL"] if {"PA", "AP"} <= set(views) else views
    findings = source.findings()
    convert = delayed(source.to_studies, pure=False)
    kept, left = [], []
    for block in pool.stream(convert(piece) for piece in source.iter_chunks()):
        stored = places.find(block["image_id"])
        left_out = pd.Series("", index=block.index, dtype="str")
        left_out[stored < 0] = "no image"
        left_out[~block["view"].isin(views)] = "view not in data.views"
        block, out = block.assign(stored=stored), left_out != ""
        left.append(block.loc[out, ["image_id", "patient_id"]].assign(left_out=left_out[out]))
        inside = block[~out]
        spool.add(inside)
        labels = {name: inside[name].fillna(-1).astype(np.int8) for name in findings}
        ids = ["stored", "patient_id", *(name for name in ("official", "monochrome1") if name in inside)]
        kept.append(inside[ids].assign(**labels))
    return pd.concat(kept).sort_values("stored", ignore_index=True), pd.concat(left, ignore_index=True)


def write_studies(
    path: Path,
    spool: SpillBuffer,
    kept: pd.DataFrame,
    images: pd.DataFrame,
    findings: Sequence[str],
    salt: bytes | None = None,
) -> dict[str, Any]:
    """Write studies.parquet piece by piece: rows as spooled, with their split and where their images are.

    Args:
        path: file to write.
        spool: the rows that `read_table` kept.
        kept: which of them to write, by `stored`, and their split.
        images: rows of `ral.data.images.locate.list_images`.
        findings: columns of labels.
        salt: for pseudonyms; None writes ids as they are.

    Returns:
        Images, and per finding positives, negatives and unknown, in each split.
    """
    with StudiesWriter(path, findings, SPLITS) as written:
        for rows in spool.in_order():
            ends = [rows["stored"].iloc[0], rows["stored"].iloc[-1] + 1]
            first, last = np.searchsorted(kept["stored"], ends)
            these = kept.iloc[first:last]
            if len(these) < len(rows):  # some images turned out to be bad
                rows = rows[rows["stored"].isin(these["stored"])]
            where = images[["path", "member"]].iloc[these["stored"]]
            studies = rows.assign(
                path=where["path"].array, member=where["member"].array, split=these["split"].array
            )[[*COLUMNS, *findings]]
            written.add(pseudonymised(studies, salt) if salt else studies)
    return written.class_counts


def _ids(kept: pd.DataFrame, images: pd.DataFrame) -> "pd.Series[str]":
    """Image ids of rows by where their images are stored."""
    return images["image_id"].iloc[kept["stored"]].set_axis(kept.index)


def counted(reasons: pd.Series) -> str:
    """Reasons with their counts, for people: "97125 no image, 3 view not in data.views"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons[reasons != ""].value_counts().items())
