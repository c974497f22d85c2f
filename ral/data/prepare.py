"""Dask: the label table to studies.parquet with its split, the films to pixel shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dask import delayed

from ral.config.dask import DaskTarget
from ral.config.data import PreprocessParams
from ral.data.baseline import read_split
from ral.data.cluster import Pool, Report, open_pool
from ral.data.duplicates import SameImages, same_pixels, shared_images
from ral.data.pack import Packed, film_name, pack, pixel_statistics
from ral.data.privacy import pseudonymised, pseudonyms, read_salt
from ral.data.sources.base import Source, open_source
from ral.data.split import (
    SPLITS,
    check_split,
    keep_old_patients,
    split_by_hash,
    split_official,
    split_stratified,
)
from ral.data.table import Places, Spool, Writer
from ral.errors import UserError
from ral.files import write_json
from ral.labels import PHANTOM_PREFIX

# Columns of studies.parquet; the findings follow.
COLUMNS = ("image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split")

# Images named for each note.
NOTED = 3


def prepare(
    params: PreprocessParams,
    films: pd.DataFrame,
    out: Path,
    target: DaskTarget,
    progress: Report,
    state_dir: Path | None = None,
    baseline: Path = Path("baseline"),
) -> None:
    """Write studies.parquet, split.parquet, class_counts.json, quarantine.parquet, dataset.json and shards/.

    Args:
        params: data, split and preprocess sections.
        films: where each film is, in stored order (`ral.data.films.list_films`).
        out: an existing empty folder.
        target: where the work is done; it changes no byte.
        progress: told of every packed film.
        state_dir: private folder in which decoded films are kept for later runs; None keeps none.
        baseline: folder with the accepted split, if there is one.

    Raises:
        UserError: a film is bad (see preprocess.on_bad_film), an archive is damaged, the split cannot be used.
    """
    root = Path(params.data.root)
    source = open_source(params.data)
    findings = source.findings()
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    before = read_split(baseline)
    with open_pool(target) as pool, Spool(out / ".rows") as spool:
        kept, left = read_table(source, films, params.data.views, spool, pool)
        if kept.empty:
            raise UserError(
                f"No film of {root} is left: of {len(left)} rows, "
                f"{counted(left['left_out'])}. Check data.root and data.views."
            )
        kept["split"] = assign_splits(source, kept, films, findings, params, salt, before)
        check_split(kept, findings, params.split)
        everything = len(kept) == len(films)  # then there is no need of a copy
        packing = films if everything else films.iloc[kept["stored"]].reset_index(drop=True)
        if salt:  # the shards name films too
            packing = packing.assign(image_id=pseudonyms(packing["image_id"], salt))
        if "monochrome1" in kept:
            packing = packing.assign(invert=find_inverted(kept, packing, root, params.preprocess.monochrome1))
        packed = pack(root, packing, params.preprocess, out, pool, progress, state_dir)

        rows = len(kept) + len(left)
        bad = kept.loc[~packed.good, ["stored", "patient_id"]]
        if len(bad):  # the split is that of the films that are left, as if the others had never been there
            kept = kept[packed.good].reset_index(drop=True)
            kept["split"] = assign_splits(source, kept, films, findings, params, salt, before)
            check_split(kept, findings, params.split)
        same = find_same_images(kept, films, out, packed, params.preprocess.size)
        if same.images and params.split.same_image == "fail":
            raise UserError(explain_same_images(same, salt))
        if same.images and params.split.same_image == "join":
            kept["group"] = join_patients(source, kept, films, same, params, salt, before)
            kept["split"] = assign_splits(source, kept, films, findings, params, salt, before)
            check_split(kept, findings, params.split)
        bad.insert(0, "image_id", _ids(bad, films))
        bad = bad.drop(columns="stored")
        phantom = bool(_ids(kept, films).str.startswith(PHANTOM_PREFIX).any())
        counts = write_studies(out / "studies.parquet", spool, kept, films, findings, salt)
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
            "films": len(kept),
            "patients": len(patients),
            "rows": rows,
            "left_out": reasons.value_counts().sort_index().to_dict(),
            "same_image": {
                "images": same.images,
                "patients": same.patients,
                "examples": same.examples(salt),
                "joined": params.split.same_image == "join",
            },
            "notes": count_notes(packed.notes, packing["image_id"]),
            "findings": list(findings),
            "size": params.preprocess.size,
            "pixel_mean": mean,
            "pixel_deviation": deviation,
            "split": {
                name: {
                    "films": counts[name]["films"],
                    "patients": int((patients["split"] == name).sum()),
                }
                for name in SPLITS
            },
            "shards": packed.shards,
        },
    )


def find_inverted(kept: pd.DataFrame, packing: pd.DataFrame, root: Path, choice: str) -> np.ndarray:
    """Which films are to be inverted because the table says MONOCHROME1, bool; DICOM files say it themselves.

    Args:
        kept: rows of the table, with monochrome1.
        packing: where their films are, in that order.
        root: the data folder.
        choice: `preprocess.monochrome1`.

    Raises:
        UserError: there are such films, and nobody has chosen what to do.
    """
    names = packing["member"].where(packing["member"] != "", packing["path"]).str.lower()
    dark = kept["monochrome1"].to_numpy(bool) & ~names.str.endswith((".dcm", ".dicom")).to_numpy(bool)
    if dark.any() and choice == "fail":
        path, member = packing[["path", "member"]].iloc[int(np.flatnonzero(dark)[0])]
        raise UserError(
            f"{dark.sum()} of {len(dark)} images are MONOCHROME1 by the table: high values are dark, and PNG and JPEG cannot "
            f"say so. The first: {film_name(root, path, member)}. Look at some of them, and set preprocess.monochrome1: "
            "invert, if the lungs are bright (the pixels are as they were stored in DICOM); keep, if the lungs are dark "
            "(they were inverted when the files were made); fail, the default, stops here."
        )
    return dark & (choice == "invert")


def count_notes(notes: Sequence[str], image_ids: "pd.Series[str]") -> dict[str, Any]:
    """How many images each note (`ral.data.pixels.NOTES`) is of, and the first of them."""
    counts: dict[str, Any] = {}
    for index, note in enumerate(notes):
        for word in filter(None, note.split(",")):
            count = counts.setdefault(word, {"images": 0, "examples": []})
            count["images"] += 1
            if len(count["examples"]) < NOTED:
                count["examples"].append(image_ids.iloc[index])
    return dict(sorted(counts.items()))


def assign_splits(
    source: Source,
    kept: pd.DataFrame,
    films: pd.DataFrame,
    findings: Sequence[str],
    params: PreprocessParams,
    salt: bytes | None,
    before: pd.Series | None,
) -> pd.Series:
    """Split of each kept row by `split.method`; patients of the accepted split stay where they are.

    Rows of one `group`, if there is such a column (see `join_patients`), go together as if they were one patient's. The
    accepted split names patients as it was written: by pseudonym where `salt` is given.

    Raises:
        UserError: the source has no official split, or a patient would move.
    """
    before = _with_plain_ids(before, kept, salt)
    people = kept.assign(patient_id=kept["group"]) if "group" in kept else kept
    if params.split.method == "official":
        named = people.assign(image_id=_ids(kept, films))
        split = split_official(named, source.official(named), params.split)
    elif params.split.method == "hash":
        split = split_by_hash(people["patient_id"], params.split)
    else:
        split = split_stratified(people, findings, params.split, before)
    keep_old_patients(kept, split, before)
    return split


def _with_plain_ids(before: pd.Series | None, kept: pd.DataFrame, salt: bytes | None) -> pd.Series | None:
    """The accepted split by the ids of the table."""
    if before is None or not salt:
        return before
    written = pseudonymised(kept[["patient_id"]], salt)["patient_id"]
    known = pd.DataFrame({"patient_id": kept["patient_id"], "split": written.map(before)}).dropna()
    return known.drop_duplicates("patient_id").set_index("patient_id")["split"]


def find_same_images(
    kept: pd.DataFrame, films: pd.DataFrame, out: Path, packed: Packed, size: int
) -> SameImages:
    """Images that are equal pixel by pixel once prepared, and stand under more than one patient.

    Args:
        kept: the packed rows in their order: stored, patient_id.
        films: rows of `ral.data.films.list_films`.
        out: folder that has the shards.
        packed: what `ral.data.pack.pack` returned.
        size: height and width of a prepared image.
    """
    shards = [out / "shards" / shard["name"] for shard in packed.shards]
    content = same_pixels(shards, size, packed.sums)
    rows = kept.iloc[content.index][["stored", "patient_id"]].assign(content=content.array)
    return SameImages(shared_images(rows.assign(image_id=_ids(rows, films))))


def explain_same_images(same: SameImages, salt: bytes | None) -> str:
    """The error of `split.same_image: fail`."""
    lines = [f"  {', '.join(rows)}" for rows in same.examples(salt)]
    return "\n".join(
        [
            f"{same.images} images stand under more than one patient ({same.patients} patients), equal pixel by pixel. "
            "The first:",
            *lines,
            "Correct the patient ids or the files, or set split.same_image to join (such patients go into one split) or "
            "to warn.",
        ]
    )


def join_patients(
    source: Source,
    kept: pd.DataFrame,
    films: pd.DataFrame,
    same: SameImages,
    params: PreprocessParams,
    salt: bytes | None,
    before: pd.Series | None,
) -> pd.Series:
    """For each kept row the patient who stands for all that are to be in one split with its own.

    Raises:
        UserError: the official lists put such patients into two.
    """
    known = _with_plain_ids(before, kept, salt)
    leader = same.groups(None if known is None else known.index)
    group = kept["patient_id"].map(leader).fillna(kept["patient_id"])
    if params.split.method == "official":
        named = kept.loc[kept["patient_id"].isin(leader.index)]
        lists = (
            source.official(named.assign(image_id=_ids(named, films))).groupby(group[named.index]).nunique()
        )
        apart = lists.index[lists > 1]
        if len(apart):
            members = ", ".join(sorted(leader.index[leader == apart[0]]))
            raise UserError(
                f"Patients {members} share an image and stand on both official lists, so that split.same_image: join and "
                "split.method: official exclude each other. Set one of them otherwise."
            )
    return group


def read_table(
    source: Source, films: pd.DataFrame, views: Sequence[str], spool: Spool, pool: Pool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a source's table in pieces, and say of each row whether, and why, it is left out.

    Args:
        source: the source.
        films: rows of `ral.data.films.list_films`.
        views: the views to keep.
        spool: gets the rows that are kept, all columns, with `stored`: the place of the film in `films`.
        pool: converts the pieces.

    Returns:
        Of the rows that are kept, in stored order, what the split is made of: stored, patient_id, the owners'
        split and monochrome1 where there are such columns, and the findings as int8 (-1: unknown). Of the others image_id, patient_id and left_out
        (the reason), in the order of the table.
    """
    places = Places(films["image_id"])
    # A film of which only that it is frontal is known is one of the two.
    views = [*views, "FRONTAL"] if {"PA", "AP"} <= set(views) else views
    findings = source.findings()
    convert = delayed(source.to_studies, pure=False)
    kept, left = [], []
    for block in pool.stream(convert(piece) for piece in source.pieces()):
        stored = places.find(block["image_id"])
        left_out = pd.Series("", index=block.index, dtype="str")
        left_out[stored < 0] = "no film"
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
    spool: Spool,
    kept: pd.DataFrame,
    films: pd.DataFrame,
    findings: Sequence[str],
    salt: bytes | None = None,
) -> dict[str, Any]:
    """Write studies.parquet piece by piece: rows as spooled, with their split and where their films are.

    Args:
        path: file to write.
        spool: the rows that `read_table` kept.
        kept: which of them to write, by `stored`, and their split.
        films: rows of `ral.data.films.list_films`.
        findings: columns of labels.
        salt: for pseudonyms; None writes ids as they are.

    Returns:
        Films, and per finding positives, negatives and unknown, in each split.
    """
    with Writer(path, findings, SPLITS) as written:
        for rows in spool.in_order():
            ends = [rows["stored"].iloc[0], rows["stored"].iloc[-1] + 1]
            first, last = np.searchsorted(kept["stored"], ends)
            these = kept.iloc[first:last]
            if len(these) < len(rows):  # some films turned out to be bad
                rows = rows[rows["stored"].isin(these["stored"])]
            where = films[["path", "member"]].iloc[these["stored"]]
            studies = rows.assign(
                path=where["path"].array, member=where["member"].array, split=these["split"].array
            )[[*COLUMNS, *findings]]
            written.add(pseudonymised(studies, salt) if salt else studies)
    return written.class_counts


def _ids(kept: pd.DataFrame, films: pd.DataFrame) -> "pd.Series[str]":
    """Image ids of rows by where their films are stored."""
    return films["image_id"].iloc[kept["stored"]].set_axis(kept.index)


def counted(reasons: pd.Series) -> str:
    """Reasons with their counts, for people: "97125 no film, 3 view not in data.views"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons[reasons != ""].value_counts().items())
