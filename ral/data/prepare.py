"""Dask: the label table to studies.parquet with its split, the films to pixel shards."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import dask
import numpy as np
import pandas as pd

from ral.config.data import PreprocessParams
from ral.data import npz
from ral.data.baseline import read_split
from ral.data.films import read_films
from ral.data.pixels import decode, write_shard
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
from ral.files import sha256, write_json
from ral.labels import PHANTOM_PREFIX

Report = Callable[[int], None]


def prepare(
    params: PreprocessParams,
    films: pd.DataFrame,
    out: Path,
    workers: int,
    progress: Report,
    baseline: Path = Path("baseline"),
) -> None:
    """Write studies.parquet, split.parquet, class_counts.json, quarantine.parquet, dataset.json and shards/.

    Args:
        params: data, split and preprocess sections.
        films: where each film is, in stored order (`ral.data.films.list_films`).
        out: an existing empty folder.
        workers: threads; they share the work out and change no byte of it.
        progress: told of every packed film.
        baseline: folder with the accepted split, if there is one.

    Raises:
        UserError: a film is no image, an archive is damaged, the split cannot be used.
    """
    root = Path(params.data.root)
    source = open_source(params.data)
    findings = source.findings()
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    with dask.config.set(scheduler="threads", num_workers=workers):
        table = read_table(source, films, params.data.views)
        kept = (
            table[table["left_out"] == ""].drop(columns="left_out").sort_values("stored", ignore_index=True)
        )
        if kept.empty:
            raise UserError(
                f"No film of {root} is left: of {len(table)} rows, "
                f"{counted(table['left_out'])}. Check data.root and data.views."
            )
        kept["split"] = assign_splits(source, kept, findings, params, salt, read_split(baseline))
        check_split(kept, findings)
        if salt:
            table = pseudonymised(table, salt)
            kept["image_id"] = pseudonymised(kept[["image_id"]], salt)["image_id"]
        shards, sums = pack(root, kept, params.preprocess.size, params.preprocess.shard_films, out, progress)

    columns = ["image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split"]
    studies = kept[[*columns, *findings]]
    if salt:  # the image ids were needed to name the packed films, and are pseudonyms already
        studies = pseudonymised(studies.drop(columns="image_id"), salt).assign(image_id=studies["image_id"])
        studies = studies[[*columns, *findings]]
    studies.to_parquet(out / "studies.parquet", index=False)
    patients = studies[["patient_id", "split"]].drop_duplicates().sort_values("patient_id")
    patients.to_parquet(out / "split.parquet", index=False)
    left = table.loc[table["left_out"] != "", ["image_id", "patient_id", "left_out"]]
    left.rename(columns={"left_out": "reason"}).to_parquet(out / "quarantine.parquet", index=False)
    write_json(out / "class_counts.json", class_counts(studies, findings))
    mean, deviation = pixel_statistics(sums[(studies["split"] == "train").to_numpy()], params.preprocess.size)
    write_json(
        out / "dataset.json",
        {
            "source": params.data.source,
            "phantom": bool(studies["image_id"].str.startswith(PHANTOM_PREFIX).any()),
            "films": len(studies),
            "patients": int(studies["patient_id"].nunique()),
            "rows": len(table),
            "left_out": left["left_out"].value_counts().sort_index().to_dict(),
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
            "shards": shards,
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


def pack(
    root: Path, kept: pd.DataFrame, size: int, shard_films: int, out: Path, progress: Report
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Decode every kept film once and write the shards, an archive or a run of files per Dask task.

    Args:
        root: the data folder.
        kept: image_id, path and member in stored order; the shards keep that order.
        size: height and width of a prepared film.
        shard_films: most films in a shard.
        out: folder that gets `shards/`.
        progress: told of every packed film.

    Returns:
        Name, films and SHA-256 of each shard, and per film the sum of its pixels and of their squares (int64).

    Raises:
        UserError: a film is no image, or an archive is damaged.
    """
    folder = out / "shards"
    folder.mkdir()
    # Films inside an archive are one task, for it can only be read from the front; single files are cut to shards.
    place = np.arange(len(kept))
    group = kept["path"].where(kept["member"] != "", "file " + pd.Series(place // shard_films, dtype="str"))
    tasks, names = [], 0
    for _, films in kept.groupby(group, sort=False):
        tasks.append(_pack_group(root, films, size, shard_films, folder, names, progress))
        names += -(-len(films) // shard_films)
    done = dask.compute(*tasks)
    return [shard for shards, _ in done for shard in shards], np.concatenate([sums for _, sums in done])


@dask.delayed
def _pack_group(
    root: Path, films: pd.DataFrame, size: int, shard_films: int, folder: Path, number: int, progress: Report
) -> tuple[list[dict[str, Any]], np.ndarray]:
    wanted = films["image_id"].tolist()
    shards: list[dict[str, Any]] = []
    sums = np.empty((len(films), 2), np.int64)
    images = np.empty((min(shard_films, len(films)), size, size), np.uint8)
    start = 0
    for index, (image_id, content, name) in enumerate(_read_group(root, films)):
        if image_id != wanted[index]:
            raise UserError(
                f"{name} is not where it was when it was validated. Run validate again: dvc repro."
            )
        image = images[index - start]
        image[:] = decode(content, size, name)
        sums[index] = image.sum(dtype=np.int64), np.square(image, dtype=np.int64).sum()
        progress(1)
        if index + 1 - start == len(images) or index + 1 == len(films):
            path = folder / f"{number + len(shards):05}.arrow"
            rows = index + 1 - start
            write_shard(path, wanted[start : index + 1], images[:rows])
            shards.append({"name": path.name, "films": rows, "sha256": sha256(path)})
            start = index + 1
    if start < len(films):
        raise UserError(
            f"{root / films['path'].iloc[start]}: film {wanted[start]} has gone. Run validate again."
        )
    return shards, sums


def _read_group(root: Path, films: pd.DataFrame) -> Any:
    """Yield (image id, content, name for errors) of a group's films in stored order.

    An image id need not be the film's name in the archive.
    """
    path = films["path"].iloc[0]
    if path.endswith(".npz"):
        wanted = dict(zip(films["member"], films["image_id"], strict=True))
        for image_id, content in npz.read_films(root / path, wanted):
            yield image_id, content, f"Film {image_id} in {root / path}"
    elif films["member"].iloc[0]:
        names = {
            PurePosixPath(name).name: i for name, i in zip(films["member"], films["image_id"], strict=True)
        }
        for name, content in read_films(root, path, set(names)):
            yield names[name], content, f"Film {name} in {root / path}"
    else:
        for image_id, path in zip(films["image_id"], films["path"], strict=True):
            yield image_id, (root / path).read_bytes(), f"Film {root / path}"


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


def pixel_statistics(sums: np.ndarray, size: int) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of films given their sums and sums of squares; exact until the end."""
    pixels = len(sums) * size * size
    total, squares = int(sums[:, 0].sum()), int(sums[:, 1].sum())
    mean = total / pixels
    variance = squares / pixels - mean**2
    return round(mean, 6), round(max(variance, 1.0) ** 0.5, 6)
