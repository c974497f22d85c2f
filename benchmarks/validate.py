"""Time and memory of the checks of the step validate, from the number of rows of NIH to 11 million.

    python -m benchmarks.validate            # 112,120, 1 and 11 million rows: 4 GB of disk, a quarter of an hour
    python -m benchmarks.validate --quick    # 112,120 and 450,000 rows, a minute

The work is the whole step except listing the images: read a table of NIH's columns, split it into partitions,
check them with Great Expectations, write Data Docs and create the validation result. Each run is a separate
process; times exclude imports; memory is the process's peak. The peer is the same code with the table as a
single partition, for the second size.

Prints a table and, as the last line, JSON: partitions_over_whole (CPU time, the second size), peak_over_whole
(memory, the same), slope (exponent of the CPU time in the rows, from the second size to the last: 1 is
linear), peak_gib (the most rows) and growth_bytes (growth of the peak per row from the second size to the
last, mostly for the list of images). CPU time is valid on a shared machine too.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="112,120 and 450,000 rows, a minute")
    parser.add_argument("--folder", type=Path, help="folder for temporary tables; about 4 GB")
    parser.add_argument("--one", type=Path, metavar="TABLE", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks.preprocess import NIH_ROWS, write_table


def check(root: Path, work: Path) -> int:
    """The step's own functions; returns the rows checked."""
    import pandas as pd

    from ral.config.dask import DaskTarget
    from ral.config.data import DataConfig
    from ral.data.sources.base import open_source
    from ral.data.tables.partitions import Partitions
    from ral.data.validation.run import check_rows

    source = open_source(DataConfig(source="nih", root=str(root), missing_images="fail", views=["PA", "AP"]))
    images = pd.read_parquet(root / "images.parquet").assign(offset=-1, bytes=1000, hash="0" * 32)
    with Partitions(work / "rows", source.layout.patient) as rows:
        for chunk in source.iter_chunks():
            rows.add(chunk)
        summary, checks = check_rows(source, rows, images, DaskTarget(), lambda _: None, work / "docs")
    assert not any(check.stops for check in checks)
    assert not summary.images_without_row
    return summary.rows


def one(whole: bool, table: Path) -> dict[str, float]:
    """Measure in this process."""
    from ral.data.tables import partitions as partition

    with tempfile.TemporaryDirectory(dir=table.parent) as name:
        small = Path(name) / "small"
        write_table(small, 500)
        check(small, Path(name))  # warm-up: import everything
        if whole:
            partition.ROWS = sys.maxsize
        start, busy = time.perf_counter(), time.process_time()
        rows = check(table, Path(name))
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": rows, "seconds": seconds, "cpu": cpu, "peak": peak}


def measure(whole: bool, table: Path) -> dict[str, float]:
    """Measure in a separate process."""
    command = [sys.executable, "-m", "benchmarks.validate", "--one", str(table), *(["--whole"] * whole)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    if options.one:
        print(json.dumps(one(options.whole, options.one)))
        return
    sizes = [NIH_ROWS, 150_000, 450_000] if options.quick else [NIH_ROWS, 1_000_000, 11_000_000]
    runs: dict[tuple[int, bool], dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        table = Path(name) / "table"
        for rows in sizes:
            shutil.rmtree(table, ignore_errors=True)
            write_table(table, rows)
            for whole in (False, True) if rows == sizes[1] else (False,):
                run = runs[rows, whole] = measure(whole, table)
                assert run["rows"] == rows
                kind = "one partition" if whole else "partitions"
                print(
                    f"{rows:12,} rows, {kind:13}: {run['seconds']:7.2f} s, CPU {run['cpu']:7.2f} s, "
                    f"{run['peak'] / 2**30:6.2f} GiB",
                    flush=True,
                )
    middle, large = (runs[rows, False] for rows in sizes[1:])
    peer = runs[sizes[1], True]
    print(
        json.dumps(
            {
                "partitions_over_whole": round(middle["cpu"] / peer["cpu"], 2),
                "peak_over_whole": round(middle["peak"] / peer["peak"], 2),
                "slope": round(math.log(large["cpu"] / middle["cpu"]) / math.log(sizes[2] / sizes[1]), 2),
                "peak_gib": round(large["peak"] / 2**30, 2),
                "growth_bytes": round((large["peak"] - middle["peak"]) / (sizes[2] - sizes[1])),
            }
        )
    )


if __name__ == "__main__":
    main(options)
