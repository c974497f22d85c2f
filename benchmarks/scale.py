"""Memory and host seconds of one rank besides pixels and network, from the number of images: docs/sizing.md.

    python -m benchmarks.scale            # 0.25, 1 and 10 million images of 8 px: 4 GB of disk, several minutes
    python -m benchmarks.scale --quick    # 50,000 and 250,000 images, under a minute

The images are random and tiny, so that what remains is the work per row: opening the data, labels, the order of an
epoch, micro-batches, validation metrics. A process per size measures, with the project's own classes and without a
network: validation logits are random. Memory is beyond that of the imports: `held` at the end of the part, of
anonymous pages; the peak, of all pages, those of memory-mapped files included. CPU seconds are valid on a shared
machine too.

Prints a table and, as the last line, JSON: per million images of the largest size, the memory held and its peak in MB,
and the seconds of each part; `slope` is the exponent of all CPU seconds in the images, from the size before (1 is
linear).
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="50,000 and 250,000 images, under a minute")
    parser.add_argument("--images", type=int, nargs="+", help="other sizes, ascending")
    parser.add_argument("--findings", type=int, default=14, help="number of findings (default: 14)")
    parser.add_argument("--folder", type=Path, help="folder for temporary data; about 4 GB")
    parser.add_argument("--one", type=Path, metavar="PREPARED", help=argparse.SUPPRESS)
    options = parser.parse_args()

import gc
import json
import math
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.synthetic import write_dataset, write_tables_and_shards
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.sampler import SamplerConfig
from ral.config.train import TrainConfig, TrainParams
from ral.data.dataset import Dataset, open_dataset
from ral.inference.prefetch import MicroBatch
from ral.training.batch_loss import BatchLoss
from ral.training.batches import Batches
from ral.training.distributed import DistributedContext
from ral.training.outputs import write_logits
from ral.training.plan import Phase
from ral.training.validation import Validator

Result = TypeVar("Result")

SIZE = 8
SIZES, QUICK = (250_000, 1_000_000, 10_000_000), (50_000, 250_000)
# Batches of the training whose steps are measured, and how many of them.
BATCH, STEPS = 256, 200
# Once per training, or in every epoch of it; `write` on rank 0 only.
PARTS = {
    "open": "open the data",
    "batches": "labels and batches",
    "validator": "rows and findings of validation",
    "order": "order of an epoch, uniform",
    "repeat": "order of an epoch, repeat_factor",
    "steps": f"micro-batches of {BATCH} images, for all training images",
    "metrics": "validation metrics",
    "write": "write the validation logits",
}


class Meter:
    """Runs parts of the work, and keeps their seconds and memory."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._anonymous, self._peak = memory("RssAnon"), memory("VmRSS")

    def run(self, name: str, part: Callable[[], Result], times: float = 1.0) -> Result:
        """Run a part, whose seconds count `times`."""
        start, busy = time.perf_counter(), time.process_time()
        result = part()
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        gc.collect()
        self.parts[name] = {
            "seconds": seconds * times, "cpu": cpu * times, "held": memory("RssAnon") - self._anonymous,
            "peak": memory("VmHWM") - self._peak,
        }  # fmt: skip
        return result


def memory(field: str) -> int:
    """Bytes of a field of this process in /proc (Linux): RssAnon, VmRSS, or VmHWM, the peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class RandomLogits:
    """In place of a `Scorer` of a single rank."""

    rank, world = 0, 1

    def __init__(self, findings: int) -> None:
        self.findings = findings

    def score(self, _: object, rows: np.ndarray) -> np.ndarray:
        """Logits of rows, always the same."""
        return np.random.default_rng(0).standard_normal((len(rows), self.findings), np.float32)


def batches(dataset: Dataset, sampler: str) -> Batches:
    """The batches of a training on one rank."""
    train = {
        "epochs": 10, "batch_size": BATCH, "learning_rate": 1e-3, "threads": 1,
        "augment": {"flip": 0.5, "rotate": 8.0, "shift": 0.06, "zoom": 0.1},
    }  # fmt: skip
    params = TrainParams(
        model=ModelConfig(backbone="test_resnet"),
        loss=LossConfig(name="ral"),
        train=TrainConfig.model_validate(train),
    )
    context = DistributedContext(0, 1, torch.device("cpu"))
    phase = Phase("network", 10, 1e-3, SamplerConfig.model_validate({"name": sampler}))
    return Batches(phase, params, dataset, BatchLoss(params, dataset, context.device), context)


def images_of(micro_batches: Iterator[MicroBatch]) -> int:
    """Number of images of micro-batches, which are made meanwhile."""
    return sum(len(batch.images) for batch in micro_batches)


def run_parts(folder: Path) -> dict[str, Any]:
    """Run and measure all parts."""
    meter = Meter()
    dataset = meter.run("open", lambda: open_dataset(folder))
    uniform = meter.run("batches", lambda: batches(dataset, "uniform"))
    logits: Any = RandomLogits(len(dataset.findings))
    validator = meter.run("validator", lambda: Validator(logits, dataset, 10))
    meter.run("order", lambda: uniform.epoch_rows(0))
    steps = min(STEPS, uniform.steps - 1)
    micro_batches = uniform.micro_batches(0, uniform.steps - steps - 1)
    next(micro_batches)  # orders the epoch
    meter.run("steps", lambda: images_of(micro_batches), uniform.steps / steps)
    meter.run("metrics", lambda: validator.scores({}))
    rows = validator.rows
    scores = logits.score(None, rows)
    meter.run("write", lambda: write_logits(dataset, rows, scores, folder / "logits" / "val.parquet"))
    meter.run("repeat", lambda: batches(dataset, "repeat_factor").epoch_rows(0))
    return {"images": dataset.info.images, "parts": meter.parts}


def one(folder: Path) -> dict[str, Any]:
    """Measure in this process, after a warm-up."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        write_dataset(Path(name), 5_000, SIZE)
        run_parts(Path(name))
    return run_parts(folder)


def measure(folder: Path, images: int, findings: int) -> dict[str, Any]:
    """Write the data of one size, and measure in a separate process."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        names = [f"Finding {number}" for number in range(findings)]
        write_tables_and_shards(Path(name), images, SIZE, findings=names)
        command = [sys.executable, "-m", "benchmarks.scale", "--one", name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    if options.one:
        print(json.dumps(one(options.one)))
        return
    sizes = options.images or (QUICK if options.quick else SIZES)
    print(f"{platform.processor() or platform.machine()}; {options.findings} findings, images of {SIZE} px")
    runs = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for images in sizes:
            run = measure(Path(name), images, options.findings)
            runs.append(run)
            print(f"\n{f'{images:,} images':58}{'wall s':>9}{'CPU s':>9}{'held MB':>9}{'peak MB':>9}")
            for part, text in PARTS.items():
                values = run["parts"][part]
                print(
                    f"{text:58}{values['seconds']:9.2f}{values['cpu']:9.2f}{values['held'] / 1e6:9.0f}"
                    f"{values['peak'] / 1e6:9.0f}",
                    flush=True,
                )
    print(json.dumps(summary(runs)))


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The last line."""
    totals = [sum(part["cpu"] for part in run["parts"].values()) for run in runs]
    last = runs[-1]
    million, parts = last["images"] / 1e6, last["parts"]
    values = {f"{name}_s": round(part["cpu"] / million, 3) for name, part in parts.items()}
    values["held_mb"] = round(parts["metrics"]["held"] / 1e6 / million, 1)
    values["peak_mb"] = round(max(part["peak"] for part in parts.values()) / 1e6 / million, 1)
    if len(runs) > 1:
        growth = math.log(last["images"] / runs[-2]["images"])
        values["slope"] = round(math.log(totals[-1] / totals[-2]) / growth, 2)
    return values


if __name__ == "__main__":
    main(options)
