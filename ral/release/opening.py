"""The sealed test images, scored by a release only on explicit request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ral import artifacts
from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.data.dataset import open_dataset
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.common import restrict
from ral.evaluation.results import Metrics
from ral.evaluation.rows import read_studies
from ral.evaluation.score import evaluate
from ral.evaluation.tables import to_metrics
from ral.labels import common_findings
from ral.release.bundle import Bundle, require_file
from ral.release.registry import Release
from ral.release.rescore import score, seen


def score_sealed(
    release: Release, bundle: Bundle, prepared: Path, params: Path, opened: Callable[[], Any]
) -> Metrics:
    """Metrics of a release on the sealed test images, calibrated on its validation images.

    Images of patients in the training or validation split of the release are excluded.

    Args:
        release: the release to score.
        bundle: its bundle, verified.
        prepared: output folder of the step preprocess.
        params: params.yaml, for the section evaluate.
        opened: called after all checks, before the first sealed image is scored.

    Raises:
        UserError: no image is sealed, or release and images do not match.
    """
    config = load(params, EvaluateParams).evaluate
    require_file(prepared / artifacts.DATASET.name)
    dataset = open_dataset(prepared)
    studies = read_studies(prepared)
    was_seen = studies["patient_id"].isin(seen(release.bundle)).to_numpy()
    test = sealed(studies, config.sealed) & ~was_seen
    if not test.any():
        raise UserError(
            f"No test image in {prepared} is sealed: evaluate.sealed is {config.sealed:g} in {params}, or "
            f"{release.version} "
            "was trained or validated on all sealed patients."
        )
    common = common_findings(dataset.findings, bundle.findings)
    if not common:
        raise UserError(f"{release.version} and the images in {prepared} have no finding in common.")
    opened()
    val, test_logits = (
        score(release, bundle, dataset, np.flatnonzero(rows)) for rows in (studies["split"] == "val", test)
    )
    rows, logits = restrict(studies, {release.version: test_logits}, test, common)
    return to_metrics(evaluate(rows, val[["image_id", *common]], logits[release.version], config))
