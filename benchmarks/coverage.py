"""Coverage of the 95 % intervals of all metrics, by simulation: docs/evaluation.md.

    python -m benchmarks.coverage                          # 2,000 samples of each size: hours
    python -m benchmarks.coverage --state samples.jsonl    # the same, resumable after an interruption
    python -m benchmarks.coverage --quick                  # a minute, few samples of the smallest size

A sample is a test set of 100, 300 or 1,000 patients with 1 to 12 images each and the 14 findings of NIH
ChestX-ray14 at their prevalences. Labels and scores are correlated between the images of a patient and
between findings (`benchmarks.simulated`). Every interval comes from the code of the step evaluate. The true
value is the metric in a large population at the same thresholds; for a mean, over the same findings as in the
sample.

A cell is a metric at a size; metrics of single findings are pooled per tier. A cell fails if the 99 %
interval of its coverage is entirely below 93 % or, for ranking metrics and their means and differences, above
98 % (samples are independent, the metrics of one sample are not). Cells with fewer than 100 intervals are not
judged and shown as a dash. Withheld means that a metric has a value but no interval. The last line is JSON:
`cells`, `failed`, `withheld`.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000, help="samples of each size")
    parser.add_argument("--patients", type=int, nargs="+", default=(100, 300, 1000), help="sizes")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--truth", type=int, default=100_000, help="patients of the population")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--state", type=Path, help="file of completed samples, for resuming")
    parser.add_argument(
        "--quick", action="store_true", help="few samples of the first size, a small population"
    )
    options = parser.parse_args()

import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import NotRequired, TypedDict

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.simulated import BINS, FINDINGS, SHARES, Population, Sample, all_figures, population, sample
from ral.config.evaluate import Rule
from ral.evaluation import decision_curve, resampled_metrics
from ral.evaluation.audit import group_metrics
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, draw
from ral.evaluation.exact import clopper_pearson
from ral.evaluation.reliability import curve
from ral.evaluation.results import Estimate, Interval
from ral.evaluation.score import means, micro
from ral.evaluation.second_reading import agreements
from ral.evaluation.specs import FINDING_METRICS, OFFICIAL

LEAST, MOST = 0.93, 0.98
# With fewer intervals a cell is not judged: 2,000 samples of 100 patients hold a handful of Hernias.
LEAST_INTERVALS = 100
# Patients in the population with --quick.
QUICK_TRUTH = 20_000
RULE: Rule = "max_f1"
# Ranking metrics, and all means except of ece, must not be far above 95 %. Exceptions are exact intervals of
# proportions, metrics at a threshold set by few positives, and the calibration error, which is biased
# upwards.
RANKING = {"auroc", "ap", "sensitivity_at_90_specificity", "mAP", "mAUROC", "mF1"}
MEANS = ("macro", "mean of head", "mean of medium")

# Cell -> intervals that contain the true value, intervals, metrics without an interval.
Counts = dict[str, list[int]]


def one(size: int, seed: int, truth_patients: int, replicates: int) -> Counts:
    """Count the intervals of one sample that contain the true value."""
    with threadpool_limits(1):
        truth = _truth(truth_patients)
        images = sample(size, np.random.default_rng((seed, size)), truth.thresholds)
        resamples = draw(images.patients, replicates, seed, 0.95, "bca")
        counts: Counts = defaultdict(lambda: [0, 0, 0])
        _findings(images, resamples, truth, counts)
        _bins(images, resamples, truth, counts)
        _decisions(images, resamples, truth, counts)
        _readings(images, resamples, truth, counts)
        _groups(images, resamples, truth, counts)
    return dict(counts)


@cache
def _truth(patients: int) -> Population:
    return population(patients)


def _count(counts: Counts, cell: str, estimate: Interval | Estimate, truth: float) -> None:
    """Count whether an interval contains the true value; metrics without a value are not counted."""
    if estimate.value is None or not np.isfinite(truth):
        return
    if estimate.low is None or estimate.high is None:
        counts[cell][2] += 1
        return
    # Tolerance: an exact 1 may be a sum of ninths.
    counts[cell][0] += int(estimate.low - 1e-12 <= truth <= estimate.high + 1e-12)
    counts[cell][1] += 1


def _findings(images: Sample, resamples: Resamples, truth: Population, counts: Counts) -> None:
    """Metrics of every finding, their means over all and per tier, micro, and differences of two models."""
    values: dict[str, dict[str, BootstrapDistribution]] = {}
    others: dict[str, dict[str, BootstrapDistribution]] = {}
    for name, scored in images.first.items():
        if resampled_metrics.too_few(scored, resamples.patient, 5):
            continue
        values[name] = all_figures(scored, resamples)
        for metric, value in values[name].items():
            _count(
                counts,
                f"{metric} {FINDINGS[name].tier}",
                resamples.interval(value),
                truth.first[name][metric],
            )
        others[name] = resampled_metrics.ranking(images.second[name], resamples, ("ap", "auroc"))
    groups = {"macro": list(values)}
    for tier in ("head", "medium", "tail"):
        groups[f"mean of {tier}"] = [name for name in values if FINDINGS[name].tier == tier]
    for label, names in groups.items():
        if len(names) < 2:
            continue  # the mean of one finding is that finding
        for metric, estimate in means([values[name] for name in names], resamples, FINDING_METRICS).items():
            # Only findings that have a value.
            used = [name for name in names if np.isfinite(values[name][metric].values[0])]
            _count(counts, f"{metric} {label}", estimate, _mean(truth.first, used, metric))
    for official, metric in OFFICIAL.items():
        estimate = means(list(values.values()), resamples, (metric,))[metric]
        used = [name for name in values if np.isfinite(values[name][metric].values[0])]
        _count(counts, official, estimate, _mean(truth.first, used, metric))
    for metric, estimate in micro(list(images.first.values()), resamples, RULE).items():
        _count(counts, f"{metric} micro", estimate, truth.micro[metric])
    for metric in ("ap", "auroc"):
        pairs = {name: (values[name][metric], others[name][metric]) for name in values}
        for name, (first, second) in pairs.items():
            gap = truth.first[name][metric] - truth.second[name][metric]
            gap_interval = resamples.interval(resamples.difference(first, second))
            _count(counts, f"{metric} difference {FINDINGS[name].tier}", gap_interval, gap)
        if len(pairs) > 1:
            first, second = (resamples.mean([pair[side] for pair in pairs.values()]) for side in (0, 1))
            gap = _mean(truth.first, pairs, metric) - _mean(truth.second, pairs, metric)
            _count(
                counts,
                f"{metric} difference macro",
                resamples.interval(resamples.difference(first, second)),
                gap,
            )


def _mean(truth: Mapping[str, Mapping[str, float]], names: Iterable[str], metric: str) -> float:
    return float(np.mean([truth[name][metric] for name in names])) if list(names) else float("nan")


def _bins(images: Sample, resamples: Resamples, truth: Population, counts: Counts) -> None:
    """The observed share of every bin of the reliability curves."""
    for name, scored in images.first.items():
        assert scored.scores is not None
        if resampled_metrics.too_few(scored, resamples.patient, 5):
            continue
        table = curve(scored.scores, scored.labels, resamples, BINS)
        # The bins hold equal numbers of images: their edges are between the sorted scores.
        ends = np.append(0, np.cumsum(table["images"]))
        edges = np.append(np.sort(scored.scores)[ends[:-1]], np.inf)
        edges[0] = -np.inf
        shares = truth.shares(name, edges)
        for row, share in zip(table.to_dict("records"), shares, strict=True):
            interval = Interval(
                row["observed"], *(None if np.isnan(row[end]) else row[end] for end in ("low", "high"))
            )
            _count(counts, f"share of a bin {FINDINGS[name].tier}", interval, share)


def _decisions(images: Sample, resamples: Resamples, truth: Population, counts: Counts) -> None:
    """Net benefit at every threshold of the decision curves."""
    for name, scored in images.first.items():
        assert scored.scores is not None
        if resampled_metrics.too_few(scored, resamples.patient, 5):
            continue
        at = decision_curve.thresholds(SHARES[name])
        table = decision_curve.curve(scored.scores, scored.labels, at, resamples)
        for row, benefit in zip(table.to_dict("records"), truth.net_benefit(name, at), strict=True):
            found = Interval(
                row["net_benefit"], *(None if np.isnan(row[end]) else row[end] for end in ("low", "high"))
            )
            _count(counts, f"net benefit {FINDINGS[name].tier}", found, benefit)


def _readings(images: Sample, resamples: Resamples, truth: Population, counts: Counts) -> None:
    """Agreement of two readings."""
    for name, scored in images.first.items():
        for metric, value in agreements(scored.labels, images.readings[name], resamples).items():
            _count(
                counts,
                f"{metric} {FINDINGS[name].tier}",
                resamples.interval(value),
                truth.agreement[name][metric],
            )


def _groups(images: Sample, resamples: Resamples, truth: Population, counts: Counts) -> None:
    """Gaps of the audit between one half of the patients and the other, which are identically distributed."""
    inside = images.half
    pairs: dict[str, list[tuple[BootstrapDistribution, BootstrapDistribution]]] = defaultdict(list)
    for name, scored in images.first.items():
        sides = [(scored.rows(chosen), resamples.rows(chosen)) for chosen in (inside, ~inside)]
        if any(resampled_metrics.too_few(part, within.patient, 10) for part, within in sides):
            continue
        first, second = (group_metrics(part, within, RULE) for part, within in sides)
        for metric in ("auroc", "sensitivity", "calibration"):
            pairs[metric].append((first[metric], second[metric]))
            gap = resamples.interval(resamples.difference(first[metric], second[metric]))
            _count(counts, f"{metric} gap {FINDINGS[name].tier}", gap, 0.0)
        _count(
            counts, f"calibration gap of a group {FINDINGS[name].tier}",
            resamples.interval(first["calibration"]), truth.calibration[name],
        )  # fmt: skip
    for metric, several in pairs.items():
        if len(several) > 1:
            mean_first, mean_second = (resamples.mean([pair[side] for pair in several]) for side in (0, 1))
            gap = resamples.interval(resamples.difference(mean_first, mean_second))
            _count(counts, f"{metric} gap macro", gap, 0.0)


class Coverage(TypedDict):
    """The intervals of one metric for one size of the test set."""

    intervals: int
    withheld: int
    """Samples without an interval."""
    coverage: float | None
    """Share of the intervals that hold the true value; None without an interval."""
    low: NotRequired[float]
    high: NotRequired[float]
    fails: bool


def summary(samples: list[Counts]) -> dict[str, Coverage]:
    """Coverage of each cell with its 99 % interval, and whether it fails.

    The metrics of a sample are dependent, so the variance is that of a ratio estimate over samples.
    """
    cells: dict[str, Coverage] = {}
    for cell in dict.fromkeys(name for counts in samples for name in counts):
        table = np.array([counts.get(cell, (0, 0, 0)) for counts in samples], dtype=np.float64)
        held, shown, withheld = table.sum(axis=0)
        entry: Coverage = {
            "intervals": int(shown),
            "withheld": int(withheld),
            "coverage": None,
            "fails": False,
        }
        if shown:
            share = held / shown
            variance = float(np.sum((table[:, 0] - share * table[:, 1]) ** 2)) / shown**2
            varied = share * (1 - share) / variance if variance > 0 else np.inf
            trials = float(min(varied, shown))
            low, high = clopper_pearson(share, trials, 0.99)
            metric, _, where = cell.partition(" ")
            tight = metric in RANKING or (where in MEANS and metric != "ece")
            entry |= {
                "coverage": round(share, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "fails": bool(shown >= LEAST_INTERVALS and (high < LEAST or (tight and low > MOST))),
            }
        cells[cell] = entry
    return cells


def main(options: argparse.Namespace) -> None:
    """Simulate and print the table as Markdown."""
    samples, sizes, replicates, truth = options.samples, options.patients, options.replicates, options.truth
    if options.quick:
        samples, sizes, replicates, truth = 60, sizes[:1], 400, QUICK_TRUTH
    done = _read(options.state, truth, replicates)
    cells: dict[str, Coverage] = {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for size in sizes:
            missing = [seed for seed in range(samples) if (size, seed) not in done]
            work = partial(_numbered, size, truth_patients=truth, replicates=replicates)
            for seed, counts in pool.imap(work, missing):
                done[size, seed] = counts
                if options.state:
                    with options.state.open("a") as file:
                        # Terminate a truncated previous line.
                        file.write("\n" + json.dumps([size, seed, truth, replicates, counts]))
            cells |= {
                f"{cell}, {size} patients": entry
                for cell, entry in summary([done[size, seed] for seed in range(samples)]).items()
            }
    _print(cells, sizes)
    failed = [cell for cell, entry in cells.items() if entry["fails"]]
    withheld = {cell: entry["withheld"] for cell, entry in cells.items() if entry["withheld"]}
    print(json.dumps({"cells": cells, "failed": failed, "withheld": withheld}))
    sys.exit(1 if failed else 0)


def _numbered(size: int, seed: int, truth_patients: int, replicates: int) -> tuple[int, Counts]:
    return seed, one(size, seed, truth_patients, replicates)


def _read(state: Path | None, truth: int, replicates: int) -> dict[tuple[int, int], Counts]:
    """Samples completed earlier with the same settings: (size, seed) -> counts. Truncated lines are ignored."""
    done: dict[tuple[int, int], Counts] = {}
    if state and state.exists():
        for line in state.read_text().splitlines():
            try:
                size, seed, *rest, counts = json.loads(line)
            except ValueError:
                continue
            if rest == [truth, replicates]:
                done[size, seed] = counts
    return done


def _print(cells: Mapping[str, Coverage], sizes: Iterable[int]) -> None:
    names = dict.fromkeys(cell.rsplit(",", 1)[0] for cell in cells)
    print("| figure | " + " | ".join(f"{size} patients" for size in sizes) + " |")
    print("| --- |" + " --- |" * len(list(sizes)))
    for name in names:
        entries = [cells.get(f"{name}, {size} patients") for size in sizes]
        print(f"| {name} | " + " | ".join(_cell(entry) for entry in entries) + " |")


def _cell(entry: Coverage | None) -> str:
    if entry is None or 0 < entry["intervals"] < LEAST_INTERVALS:
        return "–"
    if entry["coverage"] is None:
        return "no interval"
    return f"{100 * entry['coverage']:.1f} %" + " (fails)" * entry["fails"]


if __name__ == "__main__":
    main(options)
