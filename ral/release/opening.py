"""The sealed test images, scored by a release only on explicit request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.data.dataset import open_dataset
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.results import Metrics
from ral.evaluation.rows import ATTRIBUTES, KEYS, read_studies
from ral.evaluation.score import evaluate
from ral.evaluation.tables import to_metrics
from ral.release.bundle import require_file, verify
from ral.release.registry import Release
from ral.release.rescore import score, seen


def score_sealed(release: Release, prepared: Path, params: Path, opened: Callable[[], Any]) -> Metrics:
    """Metrics of a release on the sealed test images, calibrated on its validation images.

    Images of patients in the training or validation split of the release are excluded.

    Args:
        release: a release with a bundle.
        prepared: output folder of the step preprocess.
        params: params.yaml, for the section evaluate.
        opened: called after all checks, before the first sealed image is scored.

    Raises:
        UserError: no image is sealed, or release and images do not match.
    """
    config = load(params, EvaluateParams).evaluate
    require_file(prepared / "dataset.json")
    dataset = open_dataset(prepared)
    studies = read_studies(prepared)
    was_seen = studies["patient_id"].isin(seen(release)).to_numpy()
    test = sealed(studies, config.sealed) & ~was_seen
    if not test.any():
        raise UserError(
            f"No test image in {prepared} is sealed: evaluate.sealed is {config.sealed:g} in {params}, or "
            f"{release.version} "
            "was trained or validated on all sealed patients."
        )
    common = [name for name in dataset.findings if name in verify(release.bundle)["findings"]]
    if not common:
        raise UserError(f"{release.version} and the images in {prepared} have no finding in common.")
    opened()
    logits = {
        name: score(release, dataset, np.flatnonzero(rows))
        for name, rows in (("val", (studies["split"] == "val").to_numpy()), ("test", test))
    }
    scored_studies = studies.loc[
        (studies["split"] != "test").to_numpy() | test,
        [*KEYS, *(name for name in ATTRIBUTES if name in studies.columns), *common],
    ]
    val_logits, test_logits = (logits[name][["image_id", *common]] for name in ("val", "test"))
    return to_metrics(evaluate(scored_studies, val_logits, test_logits, config))
