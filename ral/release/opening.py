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
from ral.evaluation.rows import align, read_studies
from ral.evaluation.score import data_of, measure
from ral.evaluation.tables import to_metrics
from ral.inference.bundle import Bundle
from ral.inference.records import read_record
from ral.labels import Data, common_findings
from ral.release.bundle import require_file
from ral.release.registry import Release
from ral.release.rescore import score, seen


def score_sealed(
    release: Release, bundle: Bundle, prepared: Path, params: Path, opened: Callable[[], Any]
) -> Metrics:
    """Metrics of a release on the sealed test images, with the calibration maps and thresholds of the release.

    Nothing is fitted: tiers, maps, thresholds and how they are evaluated are those of the bundle. Images of patients in
    the training or validation split of the release are excluded.

    Args:
        release: the release to score.
        bundle: its bundle, verified.
        prepared: output folder of the step preprocess.
        params: params.yaml, for evaluate.sealed.
        opened: called after all checks, before the first sealed image is scored.

    Raises:
        UserError: no image is sealed, release and images do not match, or the release has no calibration.
    """
    share = load(params, EvaluateParams).evaluate.sealed
    require_file(prepared / artifacts.DATASET.name)
    dataset = open_dataset(prepared)
    studies = read_studies(prepared)
    was_seen = studies["patient_id"].isin(seen(release.bundle)).to_numpy()
    test = sealed(studies, share) & ~was_seen
    if not test.any():
        raise UserError(
            f"No test image in {prepared} is sealed: evaluate.sealed is {share:g} in {params}, or "
            f"{release.version} "
            "was trained or validated on all sealed patients."
        )
    common = common_findings(dataset.findings, bundle.findings)
    if not common:
        raise UserError(f"{release.version} and the images in {prepared} have no finding in common.")
    record = read_record(release.bundle, bundle.findings)
    fitted = {finding.name: finding for finding in record.findings}
    opened()
    logits = score(release, bundle, dataset, np.flatnonzero(test))
    rows, of_release = restrict(studies, {release.version: logits}, test, common)
    images, scores = align(rows, of_release[release.version], "test")
    data: Data = "phantom" if bundle.phantom or data_of(images) == "phantom" else "images"
    return to_metrics(measure(images, scores, [fitted[name] for name in common], record.config, data))
