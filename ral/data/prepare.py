"""Dask: the label table to studies.parquet with its split, the films to pixel shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ral.config.dask import DaskTarget
from ral.config.data import PreprocessParams
from ral.data.baseline import read_split
from ral.data.cluster import Report, open_pool
from ral.data.pack import pack, pixel_statistics
from ral.data.privacy import pseudonymised, read_salt
from ral.data.sources.base import Source, open_source
from ral.data.split import (
    SPLITS,
    check_split,
    keep_old_patients,
    split_by_hash,
    split_official,
    split_stratified,
)
from ral.errors import UserError
from ral.files import write_json
from ral.labels import PHANTOM_PREFIX


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
    with open_pool(target) as pool:
        table = read_table(source, films, params.data.views)
        kept = (
            table[table["left_out"] == ""].drop(columns="left_out").sort_values("stored", ignore_index=True)
        )
        if kept.empty:
            raise UserError(
                f"No film of {root} is left: of {len(table)} rows, "
                f"{counted(table['left_out'])}. Check data.root and data.views."
            )
        kept["split"] = assign_splits(source, kept, findings, params, salt, before)
        check_split(kept, findings)
        content = films[["offset", "hash"]].iloc[kept["stored"].astype("int64")].reset_index(drop=True)
        packing = kept.join(content)
        if salt:  # the shards name films too
            packing["image_id"] = pseudonymised(kept[["image_id"]], salt)["image_id"]
        packed = pack(root, packing, params.preprocess, out, pool, progress, state_dir)

    bad = kept.loc[~packed.good, ["image_id", "patient_id"]]
    if len(bad):  # the split is that of the films that are left, as if the others had never been there
        kept = kept[packed.good].reset_index(drop=True)
        kept["split"] = assign_splits(source, kept, findings, params, salt, before)
        check_split(kept, findings)
    columns = ["image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split"]
    studies = kept[[*columns, *findings]]
    if salt:
        studies, table, bad = (pseudonymised(rows, salt) for rows in (studies, table, bad))
    studies.to_parquet(out / "studies.parquet", index=False)
    patients = studies[["patient_id", "split"]].drop_duplicates().sort_values("patient_id")
    patients.to_parquet(out / "split.parquet", index=False)
    left = table.loc[table["left_out"] != "", ["image_id", "patient_id", "left_out"]]
    reasons = left["left_out"]
    if len(bad):
        reasons = pd.concat([reasons, pd.Series(packed.reason)])
        left = pd.concat([left, bad.assign(left_out=packed.explained)])
    left.rename(columns={"left_out": "reason"}).to_parquet(out / "quarantine.parquet", index=False)
    write_json(out / "class_counts.json", class_counts(studies, findings))
    mean, deviation = pixel_statistics(
        packed.sums[(studies["split"] == "train").to_numpy()], params.preprocess.size
    )
    write_json(
        out / "dataset.json",
        {
            "source": params.data.source,
            "phantom": bool(studies["image_id"].str.startswith(PHANTOM_PREFIX).any()),
            "films": len(studies),
            "patients": int(studies["patient_id"].nunique()),
            "rows": len(table),
            "left_out": reasons.value_counts().sort_index().to_dict(),
            "findings": list(findings),
            "size": params.preprocess.size,
            "pixel_mean": mean,
            "pixel_deviation": deviation,
            "split": {
                name: {
                    "films": int((studies["split"] == name).sum()),
                    "patients": int((patients["split"] == name).sum()),
                }
                for name in SPLITS
            },
            "shards": packed.shards,
        },
    )


def assign_splits(
    source: Source,
    kept: pd.DataFrame,
    findings: Sequence[str],
    params: PreprocessParams,
    salt: bytes | None,
    before: pd.Series | None,
) -> pd.Series:
    """Split of each kept row by `split.method`; patients of the accepted split stay where they are.

    The accepted split names patients as it was written: by pseudonym where `salt` is given.

    Raises:
        UserError: the source has no official split, or a patient would move.
    """
    if before is not None and salt:
        written = pseudonymised(kept[["patient_id"]], salt)["patient_id"]
        known = pd.DataFrame({"patient_id": kept["patient_id"], "split": written.map(before)}).dropna()
        before = known.drop_duplicates("patient_id").set_index("patient_id")["split"]
    if params.split.method == "official":
        split = split_official(kept, source.official(kept), params.split)
    elif params.split.method == "hash":
        split = split_by_hash(kept["patient_id"], params.split)
    else:
        split = split_stratified(kept, findings, params.split, before)
    keep_old_patients(kept, split, before)
    return split


def read_table(source: Source, films: pd.DataFrame, views: Sequence[str]) -> pd.DataFrame:
    """Read a source's table in blocks and say of each row whether, and why, it is left out.

    Returns:
        `Source.to_studies` and the columns path, member, stored (place of the film in stored order) and left_out
        ("" or the reason), in the order of the table.
    """
    where = films.assign(stored=np.arange(len(films))).set_index("image_id")[["path", "member", "stored"]]
    # A film of which only that it is frontal is known is one of the two.
    views = [*views, "FRONTAL"] if {"PA", "AP"} <= set(views) else views
    blocks = source.blocks()
    empty = _prepare_block(source.to_studies(blocks._meta), where, views)
    rows = blocks.map_partitions(
        lambda block: _prepare_block(source.to_studies(block), where, views), meta=empty
    )
    return rows.compute().reset_index(drop=True)


def _prepare_block(studies: pd.DataFrame, where: pd.DataFrame, views: Sequence[str]) -> pd.DataFrame:
    joined = studies.join(where, on="image_id")
    left_out = pd.Series("", index=joined.index, dtype="str")
    left_out[joined["stored"].isna()] = "no film"
    left_out[~joined["view"].isin(views)] = "view not in data.views"
    return joined.assign(left_out=left_out)


def counted(reasons: pd.Series) -> str:
    """Reasons with their counts, for people: "97125 no film, 3 view not in data.views"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons[reasons != ""].value_counts().items())


def class_counts(studies: pd.DataFrame, findings: tuple[str, ...]) -> dict[str, Any]:
    """Films, and per finding positives, negatives and unknown, in each split."""
    counts = {}
    for name in SPLITS:
        labels = studies.loc[studies["split"] == name, list(findings)]
        counts[name] = {
            "films": len(labels),
            "positives": {finding: int((labels[finding] == 1).sum()) for finding in findings},
            "negatives": {finding: int((labels[finding] == 0).sum()) for finding in findings},
            "unknown": {finding: int(labels[finding].isna().sum()) for finding in findings},
        }
    return counts
