"""Validation after an epoch: logits of the validation images, and the metrics that select the weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral.data.dataset import Dataset
from ral.inference.score import Scorer, ap_and_auroc, estimable_findings
from ral.training.state import EpochRecord, TrainState, WeightsKind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationScores:
    """Means over the findings that validation can measure."""

    macro_ap: float
    macro_auroc: float


class Validator:
    """Measures weights on the validation images.

    Args:
        scorer: computes logits, on all ranks.
        dataset: the prepared data.
        min_positives: evaluate.min_positives: patients with and without a finding that its metrics need.

    Raises:
        UserError: no finding has both in validation.
    """

    def __init__(self, scorer: Scorer, dataset: Dataset, min_positives: int) -> None:
        self.scorer = scorer
        self.rows = dataset.rows("val")
        self.targets = dataset.targets(self.rows)
        patients = dataset.column("patient_id", self.rows)
        self.findings = estimable_findings(self.targets, patients, min_positives)
        """The findings that the metrics are averaged over; boolean [findings]."""

    @property
    def measured(self) -> int:
        """Number of findings that the metrics are averaged over."""
        return int(self.findings.sum())

    def log_findings(self) -> None:
        """Log how many findings cannot be measured, if any; for rank 0."""
        if self.measured < len(self.findings):
            logger.info(
                "Validation metrics are means over %d of %d findings. The others have too few patients with or without "
                "them in validation (evaluate.min_positives, split.val).",
                self.measured, len(self.findings),
            )  # fmt: skip

    def scores(self, weights: dict[str, Tensor]) -> ValidationScores | None:
        """The metrics of complete weights; None if a logit is not finite. All ranks must call it."""
        logits = self.scorer.score(weights, self.rows)
        if not np.isfinite(logits).all():
            return None
        ap, auroc = self._finding_scores(logits)
        return ValidationScores(float(np.mean(ap)), float(np.mean(auroc)))

    def _finding_scores(self, logits: np.ndarray) -> np.ndarray:
        """AP and AUROC of the measured findings, float64 [2, findings]; each rank computes those of some findings."""
        rank, world = self.scorer.rank, self.scorer.world
        measured = np.flatnonzero(self.findings)
        scores = np.empty((2, len(measured)))
        local = measured[rank::world]
        parts: list[Any] = [ap_and_auroc(self.targets[:, local], logits[:, local])]
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, parts[0])
            parts = gathered
        for start, part in enumerate(parts):
            scores[:, start::world] = part
        return scores

    def end_epoch(
        self, state: TrainState, record: EpochRecord, candidates: Mapping[WeightsKind, dict[str, Tensor]]
    ) -> None:
        """Measure weights, complete their row of the history, keep those that are better than before, and end the
        epoch. All ranks must call it.
        """
        best_ap = max(best.ap for best in state.best.values())
        improved = False
        for kind, weights in candidates.items():
            scores = self.scores(weights)
            if scores is None:
                continue
            record.set_scores(kind, scores.macro_ap, scores.macro_auroc)
            best = state.best[kind]
            if scores.macro_ap > best.ap:
                best.ap, best.epoch, best.weights = scores.macro_ap, record.epoch, weights
            improved = improved or scores.macro_ap > best_ap
        state.end_epoch(record, improved)
