"""The table stage of preprocess (Dask, chunk by chunk) against plain pandas and polars doing the same work.

    pip install -e '.[bench]'                  # polars
    python -m benchmarks.preprocess            # 112,120, 1 million and 11 million rows: about 2 GB of disk, minutes
    python -m benchmarks.preprocess --quick    # 112,120 and 450,000 rows, within a minute

The work: read a label table of NIH's columns, make one column per finding, keep the rows that have an image,
put them in the order in which the images are stored, split the patients by hash, count labels per split,
write Parquet. All three find the labels of each distinct text once. Each run is a separate process; times
exclude imports and are the best of several for the small table; memory is the process's peak. Plain pandas
and polars validate nothing; the stage rejects invalid input.

Prints a table and, as the last line, JSON: dask_over_pandas (time, 112,120 rows), dask_over_polars (time, the
most rows), cpu_over_polars (CPU time, the most rows; valid on a shared machine too), slope (exponent of the
Dask stage's time in the rows, from the second size to the last: 1 is linear), peak_gib (of the Dask stage,
the most rows) and peak_growth (its peak at the most rows over that at the second size: 1 is flat).
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="112,120 and 450,000 rows, within a minute")
    parser.add_argument("--folder", type=Path, help="folder for temporary tables; about 2 GB")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "TABLE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from ral.config.data import SplitConfig
from ral.data.exclusions import Exclusions
from ral.data.splits.methods import patient_hash
from ral.labels import NIH_FINDINGS, NO_FINDING

if TYPE_CHECKING:
    import pandas as pd

NIH_ROWS = 112_120
WORKERS = 2
TABLE = "Data_Entry_2017.csv"
SPLIT = SplitConfig(method="hash", val=0.1, test=0.2, seed=0)
COLUMNS = [
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
]  # fmt: skip


def write_table(root: Path, rows: int) -> None:
    """A table like NIH's (its columns, a few images a patient, findings joined by |), and the list of its
    images.

    The images are stored in a different order than in the table, as is common in archives.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    rng = np.random.default_rng(0)
    chances = 0.12 / np.arange(1, 15)
    images = []
    for start in range(0, rows, NIH_ROWS):
        count = min(NIH_ROWS, rows - start)
        present = rng.random((count, 14)) < chances
        codes, which = np.unique(present @ (1 << np.arange(14)), return_inverse=True)
        names = [
            "|".join(name for bit, name in enumerate(NIH_FINDINGS) if code >> bit & 1) or NO_FINDING
            for code in codes.tolist()
        ]
        number = np.arange(start, start + count)
        patient, follow_up = number // 4 + 1, number % 4
        ids = pd.Series(patient).astype(str).str.zfill(8) + "_" + pd.Series(follow_up).astype(str) + ".png"
        frame = pd.DataFrame(
            {
                "Image Index": ids,
                "Finding Labels": np.array(names, object)[which],
                "Follow-up #": follow_up,
                "Patient ID": patient,
                "Patient Age": rng.integers(1, 95, count),
                "Patient Gender": np.array(["M", "F"])[patient % 2],
                "View Position": np.array(["PA", "AP"])[rng.integers(0, 2, count)],
                "Width": 1024,
                "Height": 1024,
            }
        )
        frame.to_csv(root / TABLE, mode="a", header=start == 0, index=False)
        images.append(pa.table({"image_id": pa.array(ids, pa.string())}))
    table = pa.concat_tables(images)
    table = table.take(pa.array(rng.permutation(rows)))
    archive = pa.array((np.arange(rows) // 10_000).astype(str)).cast(pa.string())
    table = table.append_column("path", pa.compute.binary_join_element_wise("images", archive, "_"))
    table = table.append_column(
        "member", pa.compute.binary_join_element_wise("images", table["image_id"], "/")
    )
    pq.write_table(table, root / "images.parquet")


def assign_splits(patients: list[str]) -> list[str]:
    """The split of each patient, as `ral.data.splits.methods.split_by_hash` gives it."""
    where = [patient_hash(patient, SPLIT.seed) for patient in patients]
    return ["test" if p < SPLIT.test else "val" if p < SPLIT.test + SPLIT.val else "train" for p in where]


def to_studies(raw: "pd.DataFrame") -> "pd.DataFrame":
    """The pipeline's columns from NIH's, with pandas."""
    import pandas as pd

    ages, age_texts = pd.factorize(raw["Patient Age"])
    age = pd.to_numeric(pd.Series(age_texts), errors="coerce").to_numpy(np.float32)[ages]
    patients, ids = pd.factorize(raw["Patient ID"])
    studies = pd.DataFrame(
        {
            "image_id": raw["Image Index"],
            "patient_id": raw["Patient ID"],
            "study_id": raw["Patient ID"] + "_" + raw["Follow-up #"],
            "view": raw["View Position"],
            "sex": raw["Patient Gender"],
            "age_years": np.where(age <= 120, age, np.float32(np.nan)),
            "split": np.array(assign_splits(ids.tolist()), object)[patients],
        }
    )
    codes, texts = pd.factorize(raw["Finding Labels"])
    labels = [set(text.split("|")) for text in texts]
    for finding in NIH_FINDINGS:
        present = np.fromiter((finding in names for names in labels), np.float32, len(labels))
        studies[finding] = present[codes]
    return studies


def with_dask(root: Path, out: Path) -> int:
    """The functions of the step: chunks, spilled in the order of the images, written chunk by chunk."""
    import pandas as pd

    from ral.compute.dask_pool import open_pool
    from ral.config.dask import DaskTarget
    from ral.config.data import DataConfig
    from ral.data.prepare import read_table, write_studies
    from ral.data.privacy import NO_PSEUDONYMS
    from ral.data.sources.base import open_source
    from ral.data.splits.methods import split_by_hash
    from ral.data.tables.spill import SpillBuffer

    source = open_source(DataConfig(source="nih", root=str(root), missing_images="drop", views=["PA", "AP"]))
    images = pd.read_parquet(root / "images.parquet")
    with open_pool(DaskTarget(workers=WORKERS)) as pool, SpillBuffer(out.with_name("rows")) as buffer:
        included, _ = read_table(source, images, Exclusions(), buffer, pool)
        included["split"] = split_by_hash(included["patient_id"], SPLIT)
        counts = write_studies(out, buffer, included, images, NIH_FINDINGS, NO_PSEUDONYMS)
    return counts["train"].positives["Hernia"]


def with_pandas(root: Path, out: Path) -> int:
    """All at once."""
    import pandas as pd

    studies = to_studies(pd.read_csv(root / TABLE, usecols=COLUMNS, dtype=str, keep_default_na=False))
    images = pd.read_parquet(root / "images.parquet").reset_index(names="stored")
    studies = studies[studies["view"].isin(["PA", "AP"])].merge(images, on="image_id", how="inner")
    studies = studies.sort_values("stored", ignore_index=True).drop(columns="stored")
    counts = {}
    for name, group in studies.groupby("split")[list(NIH_FINDINGS)]:
        counts[name] = (group == 1).sum(), (group == 0).sum(), group.isna().sum()
    studies[["patient_id", "split"]].drop_duplicates().sort_values("patient_id")
    studies.to_parquet(out, index=False)
    return int(counts["train"][0]["Hernia"])


def with_polars(root: Path, out: Path) -> int:
    """All at once, with polars' own threads; labels and splits are joined from the distinct ones."""
    import polars as pl

    raw = pl.read_csv(root / TABLE, columns=COLUMNS, schema_overrides=dict.fromkeys(COLUMNS, pl.String))
    images = pl.read_parquet(root / "images.parquet").with_row_index("stored")
    texts = raw.select(pl.col("Finding Labels").unique())
    labels = texts.with_columns(
        pl.col("Finding Labels").str.split("|").list.contains(name).cast(pl.Float32).alias(name)
        for name in NIH_FINDINGS
    )
    ids = raw["Patient ID"].unique().to_list()
    patients = pl.DataFrame({"Patient ID": ids, "split": assign_splits(ids)})
    age = pl.col("Patient Age").cast(pl.Float32, strict=False)
    studies = (
        raw.filter(pl.col("View Position").is_in(["PA", "AP"]))
        .join(labels, on="Finding Labels", maintain_order="left")
        .join(patients, on="Patient ID", maintain_order="left")
        .join(images, left_on="Image Index", right_on="image_id")
        .sort("stored")
        .select(
            pl.col("Image Index").alias("image_id"),
            pl.col("Patient ID").alias("patient_id"),
            (pl.col("Patient ID") + "_" + pl.col("Follow-up #")).alias("study_id"),
            pl.col("View Position").alias("view"),
            pl.col("Patient Gender").alias("sex"),
            pl.when(age <= 120).then(age).alias("age_years"),
            "path",
            "member",
            "split",
            *NIH_FINDINGS,
        )
    )
    counts = studies.group_by("split").agg(
        *((pl.col(name) == 1).sum().alias(f"{name} 1") for name in NIH_FINDINGS),
        *((pl.col(name) == 0).sum().alias(f"{name} 0") for name in NIH_FINDINGS),
        *(pl.col(name).is_null().sum().alias(f"{name} null") for name in NIH_FINDINGS),
    )
    patients.sort("Patient ID")
    studies.write_parquet(out, compression="snappy")
    return int(counts.filter(pl.col("split") == "train")["Hernia 1"][0])


KINDS = {"dask": with_dask, "pandas": with_pandas, "polars": with_polars}


def one(kind: str, table: Path, out: Path) -> dict[str, float]:
    """Run one implementation in this process."""
    small = out.with_name("small")
    write_table(small, 500)
    KINDS[kind](small, out)  # warm-up: import everything
    shutil.rmtree(small)
    start, busy = time.perf_counter(), time.process_time()
    result = KINDS[kind](table, out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "answer": result}


def measure(kind: str, table: Path, out: Path, times: int) -> dict[str, float]:
    """The fastest of several runs, each in a separate process."""
    command = [sys.executable, "-m", "benchmarks.preprocess", "--one", kind, str(table), str(out)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(times)
    ]
    return min(runs, key=lambda run: run["seconds"])


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    if options.one:
        kind, table, out = options.one
        print(json.dumps(one(kind, Path(table), Path(out))))
        return
    sizes = [NIH_ROWS, 150_000, 450_000] if options.quick else [NIH_ROWS, 1_000_000, 11_000_000]
    found: dict[tuple[str, int], dict[str, float]] = {}
    print(f"{'rows':>12}" + "".join(f"{kind:>22}" for kind in KINDS))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for rows in sizes:
            table = Path(name) / "table"
            shutil.rmtree(table, ignore_errors=True)
            write_table(table, rows)
            for kind in KINDS:
                times = 1 if options.quick or rows > 1_000_000 else 3
                found[kind, rows] = measure(kind, table, Path(name) / "out.parquet", times)
            assert len({found[kind, rows]["answer"] for kind in KINDS}) == 1, "they did not do the same work"
            cells = (found[kind, rows] for kind in KINDS)
            print(
                f"{rows:12,}"
                + "".join(f"{cell['seconds']:11.2f} s{cell['peak'] / 2**30:5.2f} GiB" for cell in cells)
            )
    small, middle, large = sizes
    seconds = {key: value["seconds"] for key, value in found.items()}
    peak = {rows: found["dask", rows]["peak"] for rows in sizes}
    print(
        json.dumps(
            {
                "dask_over_pandas": round(seconds["dask", small] / seconds["pandas", small], 2),
                "dask_over_polars": round(seconds["dask", large] / seconds["polars", large], 2),
                "slope": round(
                    math.log(seconds["dask", large] / seconds["dask", middle]) / math.log(large / middle), 2
                ),
                "cpu_over_polars": round(found["dask", large]["cpu"] / found["polars", large]["cpu"], 2),
                "peak_gib": round(peak[large] / 2**30, 2),
                "peak_growth": round(peak[large] / peak[middle], 2),
            }
        )
    )


if __name__ == "__main__":
    main(options)
