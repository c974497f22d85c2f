"""The patient bootstrap of AUROC and AP against a loop over scikit-learn, in the same run.

    python -m benchmarks.bootstrap            # 2,000 replicates of 25,596 rows of 2,797 patients, 14 findings
    python -m benchmarks.bootstrap --quick    # the same, with fewer replicates for scikit-learn

The shape is that of NIH ChestX-ray14's official test list; labels and scores are drawn, half of the findings
with tied scores. scikit-learn gets the same weights as `sample_weight` for a few of the replicates, spread
over the run, and its time is scaled to all of them. Ours is timed from scores to replicates, including the
drawing of patients and the sorting; the median of three runs counts. The last line is JSON: {ratio,
max_error}: scikit-learn's time over ours, and the largest difference of a value in the replicates that both
computed.
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer replicates for scikit-learn")
    options = parser.parse_args()

import json
import os
import statistics
import time

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ral.evaluation.bootstrap import Resamples, draw
from ral.evaluation.metrics import Array, rank, ranked

ROWS, PATIENTS, REPLICATES = 25_596, 2_797, 2_000
# Prevalences of the 14 findings in that list.
PREVALENCES = (
    0.128, 0.071, 0.239, 0.104, 0.036, 0.043, 0.017, 0.182, 0.022, 0.045, 0.042, 0.063, 0.068, 0.0034,
)  # fmt: skip


def make() -> tuple[Array, Array, Array]:
    """Patient ids [rows], labels [rows, findings] and scores [rows, findings] similar to a test set."""
    generator = np.random.default_rng(0)
    share = generator.pareto(1.2, PATIENTS) + 0.2
    more = generator.choice(PATIENTS, ROWS - PATIENTS, p=share / share.sum())
    patients = np.concatenate([np.arange(PATIENTS), more])
    labels = (generator.random((ROWS, len(PREVALENCES))) < PREVALENCES).astype(float)
    scores = generator.normal(size=labels.shape) + 1.2 * labels
    scores[:, ::2] = np.round(scores[:, ::2], 2)
    return np.char.add("p", patients.astype(str)), labels, scores.astype(np.float32)


def ours(patients: Array, labels: Array, scores: Array) -> tuple[Resamples, list[dict[str, Array]]]:
    """All replicates of AUROC and AP of every finding, and the resamples they come from."""
    resamples = draw(patients, REPLICATES, seed=0)
    return resamples, [
        ranked(
            rank(scores[:, finding], labels[:, finding], resamples.patient, resamples.patients),
            resamples.weights,
            ("auroc", "ap"),
        )
        for finding in range(labels.shape[1])
    ]


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    columns = np.linspace(1, REPLICATES, 6 if options.quick else 30).astype(int)
    patients, labels, scores = make()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        resamples, values = ours(patients, labels, scores)
        times.append(time.perf_counter() - start)
    ours_seconds, peer, error = statistics.median(times), 0.0, 0.0
    for column in columns:
        weight = resamples.weights[resamples.patient, column].astype(float)
        for finding, value in enumerate(values):
            sample = labels[:, finding], scores[:, finding]
            start = time.perf_counter()
            auroc = roc_auc_score(*sample, sample_weight=weight)
            ap = average_precision_score(*sample, sample_weight=weight)
            peer += time.perf_counter() - start
            error = max(error, abs(auroc - value["auroc"][column]), abs(ap - value["ap"][column]))
    scaled = peer / len(columns) * REPLICATES
    print(
        f"{ROWS:,} rows of {PATIENTS:,} patients, {labels.shape[1]} findings; {os.cpu_count()} cores, one used"
    )
    print(
        f"ours          {ours_seconds:8.2f} s for {REPLICATES:,} replicates of AUROC and AP (median of 3 runs)"
    )
    print(
        f"scikit-learn  {scaled:8.1f} s for as many, scaled from {len(columns)} replicates in {peer:.1f} s "
        f"({peer / len(columns):.3f} s a replicate)"
    )
    print(json.dumps({"ratio": round(scaled / ours_seconds, 1), "max_error": error}))


if __name__ == "__main__":
    main(options)
