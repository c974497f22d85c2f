"""How often 95 % intervals of AUROC and AP hold the truth, by simulation: the table of docs/evaluation.md.

    python -m benchmarks.coverage                                # 2,000 samples of each size, half an hour on 2 cores
    python -m benchmarks.coverage --samples 100 --positives 50   # one size, roughly

A sample is drawn as a test set is: patients with one to many films, one patient in twenty with the finding, and scores
of which half of the spread belongs to the patient. The truth is the metric of a population of 400,000 patients. Four
intervals are compared on the same samples: those of the evaluation, from resampled patients with BCa or percentile
ends, both widened for few positive patients; plain percentiles of resampled patients; and plain percentiles of resampled films,
which take the films of a patient for independent. The last line is JSON: {positives: {metric: {interval:
coverage}}}.
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence

import numpy as np

from ral.evaluation.bootstrap import Method, Sampled, draw
from ral.evaluation.metrics import Array, rank, ranked

POSITIVES = (5, 10, 20, 50, 100)
# Patients for each one with the finding; share of a score's variance that is the patient's; distance of the means.
PATIENTS_PER_POSITIVE, WITHIN, DISTANCE = 20, 0.5, 1.5
REPLICATES = 1000
METRICS = ("auroc", "ap")
# Which units are resampled, how the ends are read, and whether they are widened.
INTERVALS: dict[str, tuple[str, Method, bool]] = {
    "BCa": ("patients", "bca", True),
    "percentile": ("patients", "percentile", True),
    "plain percentile": ("patients", "percentile", False),
    "plain percentile of films": ("films", "percentile", False),
}


def sample(positives: int, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Patient numbers, labels and scores [rows] of a test set with so many positive patients."""
    count = positives * PATIENTS_PER_POSITIVE
    # One film and a long tail of further ones, 4 on average.
    films = 1 + np.minimum(generator.geometric(0.25, size=count) - 1, 40)
    patients = np.repeat(np.arange(count), films)
    first = np.append(True, patients[1:] != patients[:-1])
    # A patient with the finding shows it on the first film and on six of ten others.
    labels = (patients < positives) & (first | (generator.random(len(patients)) < 0.6))
    own, film = generator.normal(size=count)[patients], generator.normal(size=len(patients))
    scores = DISTANCE * labels + np.sqrt(WITHIN) * own + np.sqrt(1 - WITHIN) * film
    return patients, labels.astype(float), scores


def truth() -> dict[str, float]:
    """The metrics of the population."""
    patients, labels, scores = sample(20_000, np.random.default_rng(1))
    once = np.ones((1, 1), np.uint16)
    values = ranked(rank(scores, labels, np.zeros_like(patients), 1), once, METRICS)
    return {name: float(value[0]) for name, value in values.items()}


def intervals(
    positives: int, seed: int, replicates: int = REPLICATES, kinds: Sequence[str] = tuple(INTERVALS)
) -> dict[str, dict[str, tuple]]:
    """Intervals of one sample: metric -> kind -> (low, high)."""
    patients, labels, scores = sample(positives, np.random.default_rng((seed, positives)))
    found: dict[str, dict[str, tuple]] = {name: {} for name in METRICS}
    for kind in kinds:
        units, method, widened = INTERVALS[kind]
        ids = patients if units == "patients" else np.arange(len(patients))
        resamples = draw(ids, replicates, seed, 0.95, method)
        ranking = rank(scores, labels, resamples.patient, resamples.patients)
        effective = resamples.effective(labels) if widened else 1e9
        for name, values in ranked(ranking, resamples.weights, METRICS).items():
            interval = resamples.interval(Sampled(values, effective))
            found[name][kind] = interval.low, interval.high  # None where nearly all is of one patient
    return found


def coverage(positives: int, samples: int, processes: int) -> dict[str, dict[str, float]]:
    """Share of the samples whose interval holds the truth: metric -> kind -> share."""
    true = truth()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = pool.starmap(intervals, [(positives, seed) for seed in range(samples)], chunksize=5)
    held: dict[str, dict[str, float]] = {name: {} for name in METRICS}
    for name in METRICS:
        for kind in INTERVALS:
            ends = [one[name][kind] for one in found if one[name][kind][0] is not None]
            held[name][kind] = float(np.mean([low <= true[name] <= high for low, high in ends]))
    return held


def main() -> None:
    """Simulate and print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000, help="samples of each size")
    parser.add_argument("--positives", type=int, nargs="+", default=POSITIVES, help="positive patients")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    print("truth:", ", ".join(f"{name} {value:.3f}" for name, value in truth().items()))
    print("| positive patients | metric | " + " | ".join(INTERVALS) + " |")
    print("| --- | --- |" + " --- |" * len(INTERVALS))
    everything = {}
    for positives in options.positives:
        everything[str(positives)] = coverage(positives, options.samples, options.processes)
        for name, shares in everything[str(positives)].items():
            cells = " | ".join(f"{100 * shares[kind]:.1f} %" for kind in INTERVALS)
            print(f"| {positives} | {name.upper()} | {cells} |", flush=True)
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
