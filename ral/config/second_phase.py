"""Options of the methods that retrain the classifier on stored features (`ral.training.second_phase`)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ral.config.base import Section
from ral.config.sampler import SamplerConfig


class SecondPhaseOptions(Section):
    """What every method has."""

    l2: float = Field(default=1e-3, gt=0)
    """Weight of the penalty ½ |w|² beside the mean loss; features are standardised first. Above 0, because
    few positives are separable in wide features, where the unpenalised weights are infinite."""


class CRTOptions(SecondPhaseOptions):
    """cRT: the classifier is refitted on the images that a balanced sampler draws (Kang et al., ICLR 2020)."""

    sampler: SamplerConfig = SamplerConfig(name="class_aware")
    """The sampler; class_aware as in the paper. uniform: the plain refit, without balancing."""
    epochs: int = Field(default=10, ge=1)
    """Epochs that are drawn; an image counts as often as it occurs in them."""


class UndersampleOptions(SecondPhaseOptions):
    """Random undersampling of frequent findings (Buda, Maki and Mazurowski, Neural Networks 2018)."""

    cap: float = Field(default=1.0, ge=1)
    """Images kept per finding, and without a finding, as a multiple of the positives of the rarest finding.
    1: full balance, as in the paper."""


class OversampleOptions(SecondPhaseOptions):
    """Random oversampling of positives, per finding (Buda, Maki and Mazurowski, Neural Networks 2018)."""

    ratio: float = Field(default=1.0, gt=0)
    """Positives per negative afterwards. 1: full balance, as in the paper. Findings above it are unchanged."""


class TwoPhaseOptions(UndersampleOptions):
    """Fit on capped data, then some steps on all data (Buda, Maki and Mazurowski, Neural Networks 2018)."""

    steps: int = Field(default=100, ge=0)
    """Gradient steps on all data. 0: undersampling. Very many: the plain refit, since the loss is convex."""


class SmoteOptions(OversampleOptions):
    """SMOTE: synthetic positives between neighbouring positives (Chawla et al., JAIR 2002), in feature space."""

    neighbours: int = Field(default=5, ge=1)
    """Nearest positives of other patients, of which one is drawn; 5 as in the paper."""
    step: float = Field(default=1.0, ge=0, le=1)
    """A synthetic feature lies at most this fraction of the way to the neighbour; 1 as in the paper, 0 is
    oversampling."""


class VirtualOptions(SecondPhaseOptions):
    """Virtual features: Gaussians of positives and negatives (the calibration step of LMD, arXiv 2502.03238)."""

    draws: int | None = Field(default=None, ge=2)
    """Draws per Gaussian (the authors' code: 50,000). null: the limit of infinitely many, linear discriminant
    analysis, in closed form."""
    covariance: Literal["shared", "own"] = "shared"
    """shared: of positives and negatives together, so that 45 positives are enough. own: one each, as published."""
    ridge: float | None = Field(default=None, ge=0)
    """Added to the diagonal of the sample covariance (the authors' code: 0.01). null: Ledoit-Wolf shrinkage
    instead, since the sample covariance of few images is singular."""


class RCALOptions(VirtualOptions):
    """Calibrated Gaussians: outliers removed, rare findings borrow from frequent ones (RCAL, arXiv 2211.10955)."""

    outliers: bool = True
    """Whether positives that the local outlier factor calls outliers are left out."""
    lof_neighbours: int = Field(default=20, ge=1)
    """Neighbours of the local outlier factor (scikit-learn's default)."""
    borrow: int = Field(default=2, ge=0)
    """Frequent findings, the nearest by mean, from which a rare finding borrows. 0: none."""
    rare: int = Field(default=100, ge=1)
    """Findings with fewer positive training images than this are rare."""
    own: float = Field(default=0.5, ge=0, le=1)
    """Weight of the finding's own mean and covariance; the rest is split equally among those borrowed from."""
    widen: float = Field(default=0.0, ge=0)
    """Added to the diagonal of a borrowed covariance."""


class StormOptions(CRTOptions):
    """STORM: a weight per label, learned from the losses themselves (arXiv 2412.12955)."""

    rounds: int = Field(default=200, ge=0)
    """Steps of the weighting function. 0: constant weights, which is cRT."""
    step: float = Field(default=0.5, gt=0, le=1)
    """Step of the classifier in each round, as a fraction of 1 / the largest curvature of its loss."""
    learning_rate: float = Field(default=0.1, ge=0)
    """Learning rate of the weighting function (Adam). 0: constant weights."""


class PrestoOptions(SecondPhaseOptions):
    """PRESTO: negative < uncertain < positive, with boundaries of similar slope (arXiv 2305.18627). For data
    with uncertain labels (CheXpert, MIMIC)."""

    shrink: float = Field(default=0.01, ge=0)
    """Weight of the L1 distance between the slopes of the two boundaries. 0: two free boundaries. Large:
    equal slopes, proportional odds."""


SecondPhaseMethod = Literal[
    "crt", "undersample", "oversample", "two_phase", "smote", "virtual", "rcal", "storm", "presto"
]

SECOND_PHASE_OPTIONS: Mapping[SecondPhaseMethod, type[SecondPhaseOptions]] = {
    "crt": CRTOptions,
    "undersample": UndersampleOptions,
    "oversample": OversampleOptions,
    "two_phase": TwoPhaseOptions,
    "smote": SmoteOptions,
    "virtual": VirtualOptions,
    "rcal": RCALOptions,
    "storm": StormOptions,
    "presto": PrestoOptions,
}
