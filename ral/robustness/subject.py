"""What all parts of the audit share: the network, the test images, and the findings with their decisions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ral.config.evaluate import EvaluateConfig
from ral.data.dataset import Dataset
from ral.data.splits.holdout import unsealed
from ral.errors import UserError
from ral.evaluation.bootstrap import Resamples, draw
from ral.evaluation.calibration_io import SavedCalibration
from ral.evaluation.resampled_metrics import Scored, too_few
from ral.evaluation.rows import findings_of, floats
from ral.evaluation.score import tier_of
from ral.inference.prefetch import Prefetcher, gather
from ral.inference.score import images_per_pass, score_pixels
from ral.labels import Tier
from ral.models import Network
from ral.models.info import ModelInfo
from ral.progress import Progress
from ral.robustness.contents import Audited, AuditedFinding

# Changes pixels uint8 [images, size, size], given the row numbers of the images among the test images.
Change = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Subject:
    """The model under audit, and the test images that are not sealed."""

    network: Network
    """In eval mode, on the device of the computation."""
    info: ModelInfo
    dataset: Dataset
    test: pd.DataFrame
    """The test images, sorted by image id: image_id, patient_id, labels, attributes."""
    rows: NDArray[np.int64]
    """Row numbers of these images in the data set."""
    calibration: SavedCalibration
    """Maps and thresholds, as released."""
    tiers: Mapping[str, Tier]
    """Finding -> tier, the most frequent in training first."""
    not_estimable: Mapping[str, str]
    """Finding -> why it has no metrics."""
    resamples: Resamples
    """Of the patients of the test images."""
    config: EvaluateConfig

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def scored(self, logits: NDArray[np.float32]) -> dict[str, Scored]:
        """Labels, logits, calibrated scores and thresholds by finding.

        Args:
            logits: raw logits of the test images [images, findings], columns in the order of the outputs.
        """
        result = {}
        for column, name in enumerate(self.info.findings):
            saved = self.calibration.findings[name]
            raw = logits[:, column].astype(np.float64)
            scores = None if saved is None else saved.map.apply(raw)
            thresholds = {} if saved is None else saved.thresholds
            result[name] = Scored(floats(self.test[name]), raw, scores, thresholds)
        return result

    def score(self, change: Change | None, progress: Progress | None = None) -> NDArray[np.float32]:
        """Raw logits float32 [images, findings] of the test images; every change has the same images per pass.

        Args:
            change: of the pixels; None: as they are.
            progress: counts the images.

        Raises:
            UserError: memory does not suffice for one image.
        """
        network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loaded = count = images_per_pass(self.dataset.info.size)
        pin = self.device.type == "cuda"

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(self.rows), loaded):
                numbers = np.arange(start, min(start + loaded, len(self.rows)))
                pixels = gather(self.dataset, self.rows[numbers], pin and change is None)
                yield pixels if change is None else torch.from_numpy(change(pixels.numpy(), numbers))

        parts = []
        with Prefetcher(batches) as prefetched, torch.no_grad():
            for pixels in prefetched:
                scored, count = score_pixels(network, pixels, self.info, self.device, count, pad=False)
                parts += scored
                if progress is not None:
                    progress.add(len(pixels))
        return torch.cat(parts).cpu().numpy()

    def summary(self) -> Audited:
        """The images and findings, for the results."""
        return Audited(
            images=len(self.test),
            patients=self.resamples.patients,
            findings=tuple(
                AuditedFinding(name=name, tier=tier, not_estimable=self.not_estimable.get(name))
                for name, tier in self.tiers.items()
            ),
            replicates=self.resamples.replicates,
            confidence=self.resamples.confidence,
        )


def prepare(
    network: Network,
    info: ModelInfo,
    dataset: Dataset,
    studies: pd.DataFrame,
    calibration: SavedCalibration,
    config: EvaluateConfig,
) -> Subject:
    """Collect what the audit needs.

    Args:
        network: in eval mode, on the device of the computation.
        info: content of model.json.
        dataset: the prepared data.
        studies: all splits, as `rows.read_studies` gives them.
        calibration: content of calibration.json.
        config: tiers, minimum positives, bootstrap, sealed share.

    Raises:
        UserError: network, data and calibration have different findings; fewer than 2 test patients.
    """
    names = findings_of(studies)
    if not list(info.findings) == names == [name for name in names if name in calibration.findings]:
        raise UserError(
            "The network, the prepared data and calibration.json have different findings, so they are of different "
            "runs. Run `dvc repro evaluate`."
        )
    (kept,) = unsealed(studies, config.sealed)
    test = kept[kept["split"] == "test"].sort_values("image_id", ignore_index=True)
    row_of = pd.Series(np.arange(len(dataset)), index=dataset.studies["image_id"])
    # Without leave-out samples (BCa): intervals of differences do not use them.
    resamples = draw(
        test["patient_id"].to_numpy(dtype=str), config.replicates, config.seed, config.confidence, "percentile"
    )  # fmt: skip
    train = studies[studies["split"] == "train"]
    in_training = {name: tier_of(name, train[name], config) for name in names}
    by_prevalence = sorted(names, key=lambda name: -in_training[name][1] / in_training[name][2])
    tiers = {name: in_training[name][0] for name in by_prevalence}
    return Subject(
        network=network,
        info=info,
        dataset=dataset,
        test=test,
        rows=row_of.loc[test["image_id"]].to_numpy(dtype=np.int64),
        calibration=calibration,
        tiers=tiers,
        not_estimable=not_estimable(test, tiers, resamples, config.min_positives),
        resamples=resamples,
        config=config,
    )


def not_estimable(
    test: pd.DataFrame, findings: Iterable[str], resamples: Resamples, minimum: int
) -> dict[str, str]:
    """Finding -> why it has no metrics: too few of the patients have it, or do not have it.

    Args:
        test: labels of the images.
        findings: names of the findings.
        resamples: of the patients of these images.
        minimum: evaluate.min_positives.
    """
    reasons = {}
    for name in findings:
        labels = floats(test[name])
        reason = too_few(Scored(labels, labels, None, {}), resamples.patient, minimum)
        if reason is not None:
            reasons[name] = reason
    return reasons
