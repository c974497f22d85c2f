"""The stage second_phase: the classifier of a finished run's network, refitted on its features.

Finished runs keep logits, not weights. The first second phase of a network trains it again, checks that it gives the
logits of its row, and writes the features of all images to <state>/features; the others read them.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.study.plan import Row, Run
from benchmarks.study.recipes import base
from benchmarks.study.table import digest, read_rows
from benchmarks.study.training import (
    Place,
    fold_dataset,
    metrics,
    packed,
    scored_rows,
    trained,
    where,
    write_logits,
)
from ral.errors import UserError
from ral.files import atomic_write
from ral.inference.bank import feature_batches, require_linear
from ral.training.second_phase.model import bank_of
from ral.training.second_phase.registry import build_second_phase


def refit(run: Run, place: Place, scale: float, logits: Path, runs: Path) -> dict[str, str]:
    """Refit the classifier of a network by a method with its default options, write the logits, and return the row.

    Its seconds are those of the method: training and features are shared by all methods of a network.

    Args:
        run: of the stage second_phase; its arm is that of the network, `+` and the method.
        place: of the worker.
        scale: of the network's loss.
        logits: folder of the logits.
        runs: runs.csv, with the row of the network.

    Raises:
        UserError: see `row_of_network` and `features_of`.
    """
    row = row_of_network(run, read_rows(runs))
    features = features_of(row, run, place, scale)
    dataset = fold_dataset(place.data, place.pixels, place.state, run)
    phase = build_second_phase(run.arm.partition("+")[2])
    started = time.monotonic()
    head = phase.fit(bank_of(dataset, features), run.seed)
    seconds = time.monotonic() - started
    rows = scored_rows(dataset)
    scores = {
        part: head.logits(features[numbers].astype(np.float64)).astype(np.float32)
        for part, numbers in rows.items()
    }
    content = packed(rows, scores)
    write_logits(logits / f"{run.name}.npz", content)
    return {
        **row, "run": run.name, "stage": run.stage, "arm": run.arm, **metrics(place.data, rows, scores),
        "seconds": f"{seconds:.1f}", "images_per_second": f"{len(dataset.rows('train')) / seconds:.0f}",
        **where(place), "logits": digest(content),
    }  # fmt: skip


def row_of_network(run: Run, rows: Sequence[Row]) -> Row:
    """The row of the network that a run refits: of the stage main, or of the stage rate, which stands for it.

    Raises:
        UserError: there is none.
    """
    by_name = {row["run"]: row for row in rows}
    for stage in ("main", "rate"):
        row = by_name.get(replace(run, stage=stage, arm=base(run.arm)).name)
        if row:
            return row
    raise UserError(f"{run.name} refits the network of {base(run.arm)}, which has no row on fold {run.fold}.")


def features_of(row: Row, run: Run, place: Place, scale: float) -> np.ndarray:
    """Features of all images by the network of a row, float32 [images, width]; computed if they are not there.

    Raises:
        UserError: the network does not give the logits of its row again, or its classifier is not one linear layer.
    """
    path = place.state / "features" / f"{row['run']}-{row['logits']}.npy"
    if not path.is_file():
        features = _computed(row, run, place, scale)
        with atomic_write(path) as draft, draft.open("wb") as stream:
            np.save(stream, features)
    stored: np.ndarray = np.load(path)
    return stored


def _computed(row: Row, run: Run, place: Place, scale: float) -> np.ndarray:
    """Train the network of a row again and compute its features."""
    done = trained(replace(run, stage="main", arm=base(run.arm)), place, scale)
    logits = digest(packed(done.rows, done.scores))
    if logits != row["logits"]:
        raise UserError(
            f"The network of {row['run']}, trained again, gives other logits ({logits}) than its row "
            f"({row['logits']}). Repeat that run on this machine, or run the second phase where it was trained: "
            f"{row['device']}, torch {row['torch']}."
        )
    scorer = done.trainer.validator.scorer
    scorer.network.load_state_dict(done.state.best_weights())
    require_linear(scorer.network)
    every = np.arange(len(done.dataset))
    return np.concatenate(list(feature_batches(scorer.network, done.dataset.info, done.dataset, every)))
