"""Dask: the label table to studies.parquet with its split, the films to pixel shards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from ral.config.data import PreprocessParams
from ral.data.films import read_films
from ral.data.pixels import decode, write_shard
from ral.data.sources import nih
from ral.data.split import SPLITS, check_split, split_by_hash, split_by_lists
from ral.errors import UserError
from ral.files import sha256, write_json
from ral.labels import NIH_FINDINGS, PHANTOM_PREFIX

# Bytes of the label table that one Dask task holds; bounds memory whatever the table's size.
BLOCK = "16MB"

Report = Callable[[int], None]


def prepare(params: PreprocessParams, films: pd.DataFrame, out: Path, workers: int, progress: Report) -> None:
    """Write studies.parquet, split.parquet, class_counts.json, quarantine.parquet, dataset.json and shards/.

    Args:
        params: data, split and preprocess sections.
        films: where each film is, in stored order (`ral.data.films.list_films`).
        out: an existing empty folder.
        workers: threads; they share the work out and change no byte of it.
        progress: told of every packed film.

    Raises:
        UserError: a film is no image, an archive is damaged, the split cannot be used.
    """
    root = Path(params.data.root)
    findings = tuple(params.data.findings or NIH_FINDINGS)
    with dask.config.set(scheduler="threads", num_workers=workers):
        table = read_table(nih.table_path(root), films, params.data.views)
        kept = (
            table[table["left_out"] == ""].drop(columns="left_out").sort_values("stored", ignore_index=True)
        )
        if kept.empty:
            raise UserError(
                f"No film of {root} is left: of {len(table)} rows, "
                f"{counted(table['left_out'])}. Check data.root and data.views."
            )
        if params.split.method == "official":
            kept["split"] = split_by_lists(kept, *nih.read_lists(root), params.split)
        else:
            kept["split"] = split_by_hash(kept["patient_id"], params.split)
        check_split(kept, findings)
        shards, sums = pack(root, kept, params.preprocess.size, params.preprocess.shard_films, out, progress)

    columns = ["image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split"]
    studies = kept[[*columns, *findings]]
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


def read_table(path: Path, films: pd.DataFrame, views: Sequence[str]) -> pd.DataFrame:
    """Read the label table in blocks and say of each row whether, and why, it is left out.

    Returns:
        `nih.to_studies` and the columns path, member, stored (place of the film in stored order) and left_out
        ("" or the reason), in the order of the table.
    """
    where = films.assign(stored=np.arange(len(films))).set_index("image_id")[["path", "member", "stored"]]
    blocks = dd.read_csv(path, blocksize=BLOCK, **nih.read_options())
    empty = _prepare_block(nih.to_studies(blocks._meta), where, views)
    rows = blocks.map_partitions(
        lambda block: _prepare_block(nih.to_studies(block), where, views), meta=empty
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
    """Yield (image id, content, name for errors) of a group's films in stored order."""
    if films["member"].iloc[0]:
        path = films["path"].iloc[0]
        for image_id, content in read_films(root, path, set(films["image_id"])):
            yield image_id, content, f"Film {image_id} in {root / path}"
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
