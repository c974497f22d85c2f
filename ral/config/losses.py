"""Parameters of the training loss: a block of options for each, with its paper's defaults."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ral.config.base import NullIsEmpty, Section
from ral.user_code import CUSTOM, check_class_path


class RALOptions(Section):
    """Robust Asymmetric Loss (Park et al., ICCV CVAMD 2023); defaults from the authors' code."""

    form: Literal["code", "paper"] = "code"
    """code: as implemented in the authors' repository. paper: equation 6."""
    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""
    epsilon_pos: float = 1.0
    """First Taylor coefficient of the positive terms."""
    epsilon_pos_pow: float = -2.5
    """Second Taylor coefficient of the positive terms."""
    epsilon_neg: float = 0.0
    """Taylor coefficient of the negative terms."""
    lamb: float = Field(default=1.5, ge=1)
    """Hill factor: negatives scored near 1 are probable label errors and get a smaller gradient."""


class BCEOptions(Section):
    """Binary cross-entropy, the usual baseline."""

    pos_weight: Literal["none", "balanced"] = "none"
    """balanced: positives are weighted by negatives / positives of their finding in the training images."""


class FocalOptions(Section):
    """Focal loss (Lin et al., ICCV 2017)."""

    gamma: float = Field(default=2.0, ge=0)
    """Focusing exponent."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of positives; negatives get 1 − alpha (paper, for detection: 0.25). null: both weights are 1."""


class CBOptions(Section):
    """Class-balanced loss (Cui et al., CVPR 2019): findings weighted by inverse effective number."""

    beta: float = Field(default=0.9999, ge=0, lt=1)
    """β of the effective number (1 − β^n) / (1 − β); closer to 1 gives rare findings more weight."""
    gamma: float = Field(default=0.0, ge=0)
    """Focusing exponent; 0: cross-entropy, 2: the focal variant of the paper."""


class ASLOptions(Section):
    """Asymmetric loss (Ridnik et al., ICCV 2021)."""

    gamma_pos: float = Field(default=1.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""
    detach_focus: bool = True
    """No gradient through the focusing factor (the default of the authors' code)."""


class CWASLOptions(Section):
    """Class-weighted ASL of the CXR-LT 2023 winner (CheXFusion): weight e^(1 − p) for positives, e^p for
    negatives, with prevalence p."""

    gamma_pos: float = Field(default=1.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""


class APLOptions(Section):
    """Asymmetric polynomial loss (Huang et al., ICASSP 2023)."""

    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""
    epsilon_pos: float = 1.0
    """First Taylor coefficient of the positive terms."""
    epsilon_pos_pow: float = -2.5
    """Second Taylor coefficient of the positive terms."""
    epsilon_neg: float = 0.0
    """Taylor coefficient of the negative terms."""
    detach_focus: bool = True
    """No gradient through the focusing factor (the default of the authors' code)."""


class HillOptions(Section):
    """Hill loss (Zhang et al., 2021, arXiv 2112.07368), for labels with missing positives."""

    lamb: float = Field(default=1.5, ge=1)
    """Position of the hill of the negative loss: its gradient decreases again towards p = 1."""
    margin: float = 1.0
    """Margin subtracted from the logit of a positive."""
    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent of positives."""


class SPLCOptions(Section):
    """Self-paced loss correction (Zhang et al., 2021, arXiv 2112.07368): confident negatives are
    relabelled."""

    tau: float = Field(default=0.6, gt=0, lt=1)
    """Sigmoid score above which a negative is treated as a missed positive."""
    change_epoch: int = Field(default=1, ge=0)
    """Epoch (from 0) at which the correction starts."""
    margin: float = 1.0
    """Margin subtracted from the logit of a labelled positive."""
    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent."""


class DBOptions(Section):
    """Distribution-balanced loss (Wu et al., ECCV 2020), with the COCO-MLT configuration."""

    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent."""
    balance: float = Field(default=2.0, gt=0)
    """Constant factor of the focal term."""
    map_alpha: float = 0.1
    """Minimum label weight."""
    map_beta: float = Field(default=10.0, gt=0)
    """Steepness of the mapping from resampling rate to weight."""
    map_gamma: float = 0.2
    """Resampling rate at the midpoint of the mapping."""
    neg_scale: float = Field(default=2.0, ge=1)
    """Scale of negative logits; the weight of negatives is divided by it."""
    neg_bias: float = Field(default=0.05, ge=0)
    """Strength of the class-prior bias on the logits."""


class LDAMOptions(Section):
    """Label-distribution-aware margins (Cao et al., NeurIPS 2019), multi-label, deferred re-weighting."""

    max_margin: float = Field(default=0.5, gt=0)
    """Margin of the rarest finding; margins are proportional to (number of positives)^(−1/4)."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the logits after the margin (authors: 30, for cosine classifiers; a linear head needs 1)."""
    defer_epoch: int = Field(default=160, ge=0)
    """Epoch (from 0) at which class-balanced weights start (authors: 160 of 200)."""
    beta: float = Field(default=0.9999, ge=0, lt=1)
    """β of the effective number of images, as in the class-balanced loss."""


class TwoWayOptions(Section):
    """Two-way loss (Kobayashi, CVPR 2023): positives against negatives across findings and images."""

    tp: float = Field(default=4.0, gt=0)
    """Temperature of positives."""
    tn: float = Field(default=1.0, gt=0)
    """Temperature of negatives."""


class ZLPROptions(Section):
    """Zero-bounded log-sum-exp and pairwise rank loss (Su et al., 2022, arXiv 2208.02955). No options."""


class ZLossOptions(Section):
    """Z-loss (de Brébisson and Vincent, 2016, arXiv 1604.08859): scale and shift of the logits do not matter."""

    axis: Literal["finding", "image"] = "finding"
    """What the logits are standardised over. finding: over the images of the batch, so that images stay comparable,
    as AP and AUROC need it. image: over the findings of an image, as published."""
    slope: float = Field(default=1.0, gt=0)
    """Steepness a of the loss log(1 + exp(a (b ∓ z))) / a."""
    shift: float = 0.0
    """Margin b: positives are pulled above it, negatives pushed below −b."""


class CompSumOptions(Section):
    """Comp-sum losses (Mao et al., ICML 2023, arXiv 2304.07288): from cross-entropy to generalised cross-entropy (GCE,
    Zhang and Sabuncu, NeurIPS 2018) and the absolute error, for labels with errors."""

    tau_pos: float = Field(default=1.0, ge=0, le=2)
    """τ of positives. 1: cross-entropy, 1 + q: GCE with exponent q, 2: 1 − p. Above 1, positives scored low are
    probable label errors and get a smaller gradient: with a rare finding nearly all, unless the sampler repeats it."""
    tau_neg: float = Field(default=1.7, ge=0, le=2)
    """τ of negatives. Above 1, negatives scored near 1 are probable missed positives and get a smaller gradient; 1.7 is
    GCE's q of 0.7."""


class HybridOptions(Section):
    """Hybrid loss (2024, arXiv 2410.03979), our reading of it: weighted cross-entropy and correlation of labels."""

    pos_weight: Literal["none", "balanced"] = "balanced"
    """balanced: positives are weighted by negatives / positives of their finding in the training images."""
    correlation: float = Field(default=1.0, ge=0)
    """Weight of the score of negatives that rarely occur with the image's positives; 0: weighted cross-entropy."""


class MFMOptions(Section):
    """Multi-focal modifier of COMIC (Zhang et al., ICCV 2023): ASL with focus and weight by rarity."""

    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=1)
    """Focusing exponent of negatives, before the finding-specific part is added."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""
    power: float = Field(default=1 / 6, gt=0)
    """Exponent of the finding weight (1 − log(p / largest p)) ^ power."""
    detach_focus: bool = True
    """No gradient through the focusing factor (the default of the authors' code)."""
    cooccurrence: bool = False
    """Lower the scores of positives by how often they occur with the image's other findings, and the loss of negatives
    that occur with them (the authors' prior focal modifier; they then use gamma_neg 3 and power 1/3)."""
    related: float = Field(default=1.2, ge=1)
    """With cooccurrence: factor on 1 − p of negatives that occur with a finding of the image."""


class RLCOptions(Section):
    """Reflective label correction of COMIC (Zhang et al., ICCV 2023): high-scoring negatives become positives."""

    tau: float = Field(default=0.7, gt=0, lt=1)
    """Score above which a negative is a missed positive, if it is also above the mean of its finding in the batch."""
    change_epoch: int = Field(default=1, ge=0)
    """Epoch (from 0) at which the correction starts."""
    margin: float = 1.0
    """Margin subtracted from the logit of a labelled positive."""
    gamma_neg: float = Field(default=3.0, ge=1)
    """Focusing exponent of negatives, before the finding-specific part is added."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin: negatives scored below it contribute no loss."""
    power: float = Field(default=1 / 6, gt=0)
    """Exponent of the finding weight (1 − log(p / largest p)) ^ power; p includes the labels corrected in the epoch."""


class SetLossOptions(Section):
    """Options of every loss that is computed from sums over the images of a batch."""

    memory: float = Field(default=0.99, ge=0, lt=1)
    """Decay, per step, of the running sums that stand in where a batch lacks a finding. 0: none; it does not count."""


class DiceOptions(SetLossOptions):
    """Dice loss (Li et al., ACL 2020): overlap of scores and labels of a finding, over the batch or per label."""

    form: Literal["set", "label"] = "set"
    """set: sums over the images of the global batch, mean over findings. label: one term per label."""
    alpha: float = Field(default=0.01, ge=0)
    """Exponent of the weight (1 − p)^alpha, which lowers the part of easy labels."""
    smooth: float = Field(default=1.0, gt=0)
    """Added to numerator and denominator."""
    square: bool = True
    """Squares in the denominator."""
    detach_focus: bool = True
    """No gradient through the weight. With one, as published, negatives above p = 1 / (1 + alpha) are pushed up."""


class AnyLossOptions(SetLossOptions):
    """AnyLoss (Han et al., 2024, arXiv 2405.14745): a metric of the decisions at 0.5, made smooth, with BCE."""

    metric: Literal["f", "gmean", "bacc"] = "f"
    """f: F-measure. gmean: geometric mean of sensitivity and specificity. bacc: their mean."""
    beta: float = Field(default=1.0, gt=0)
    """β of the F-measure: above 1, sensitivity counts more than precision."""
    amplify: float = Field(default=10.0, gt=0)
    """Steepness of the decision σ(amplify · (p − 0.5)) (authors: 73, where scores far from 0.5 have no gradient)."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of the metric; binary cross-entropy has the rest."""


class CustomOptions(Section):
    """Your own loss, a class in a file of the project (docs/own_loss_or_network.md)."""

    class_path: Annotated[str, AfterValidator(check_class_path)] | None = None
    """The class, as package.module:Class: a subclass of ral.losses.base.Loss."""
    options: Annotated[dict[str, int | float | str | bool | list[int | float]], NullIsEmpty] = Field(
        default_factory=dict
    )
    """Options of the class."""


class LossConfig(Section):
    """The training loss. Every loss has its own block of options; `name` selects the one in use."""

    name: Literal[
        "ral",
        "bce",
        "focal",
        "cb",
        "asl",
        "cw_asl",
        "apl",
        "hill",
        "splc",
        "db",
        "ldam",
        "two_way",
        "zlpr",
        "z_loss",
        "comp_sum",
        "hybrid",
        "mfm",
        "rlc",
        "dice",
        "anyloss",
        "custom",
    ]
    """Loss to use; see its block of options. custom: your own class."""
    adjust: Literal["none", "static", "adaptive"] = "none"
    """Logit adjustment around the loss, in training only. static: by the prevalence of each finding (Menon et al., ICLR
    2021). adaptive: by the scores that its positives get, anew after each epoch (PromptMRG, Jin et al., AAAI 2024)."""
    adjust_tau: float = Field(default=1.0, ge=0)
    """Factor τ of the shift of logit adjustment."""
    ral: RALOptions = RALOptions()
    """Options of ral."""
    bce: BCEOptions = BCEOptions()
    """Options of bce."""
    focal: FocalOptions = FocalOptions()
    """Options of focal."""
    cb: CBOptions = CBOptions()
    """Options of cb."""
    asl: ASLOptions = ASLOptions()
    """Options of asl."""
    cw_asl: CWASLOptions = CWASLOptions()
    """Options of cw_asl."""
    apl: APLOptions = APLOptions()
    """Options of apl."""
    hill: HillOptions = HillOptions()
    """Options of hill."""
    splc: SPLCOptions = SPLCOptions()
    """Options of splc."""
    db: DBOptions = DBOptions()
    """Options of db."""
    ldam: LDAMOptions = LDAMOptions()
    """Options of ldam."""
    two_way: TwoWayOptions = TwoWayOptions()
    """Options of two_way."""
    zlpr: ZLPROptions = ZLPROptions()
    """zlpr has no options."""
    z_loss: ZLossOptions = ZLossOptions()
    """Options of z_loss."""
    comp_sum: CompSumOptions = CompSumOptions()
    """Options of comp_sum."""
    hybrid: HybridOptions = HybridOptions()
    """Options of hybrid."""
    mfm: MFMOptions = MFMOptions()
    """Options of mfm."""
    rlc: RLCOptions = RLCOptions()
    """Options of rlc."""
    dice: DiceOptions = DiceOptions()
    """Options of dice."""
    anyloss: AnyLossOptions = AnyLossOptions()
    """Options of anyloss."""
    custom: CustomOptions = CustomOptions()
    """Options of custom."""

    @property
    def title(self) -> str:
        """The loss as reports name it."""
        name = self.custom.class_path or self.name if self.name == CUSTOM else self.name
        return name if self.adjust == "none" else f"{name}, {self.adjust} logit adjustment"

    @model_validator(mode="after")
    def _class_is_named(self) -> "LossConfig":
        if self.name == CUSTOM and self.custom.class_path is None:
            raise ValueError(
                "name is custom, but custom.class_path is null: write `package.module:Class` of your loss"
            )
        return self
