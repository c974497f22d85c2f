"""Parameters of the training loss: a block of options for each, with its paper's defaults."""

from typing import Literal

from pydantic import Field

from ral.config.base import Section


class RALOptions(Section):
    """Robust Asymmetric Loss (Park et al., ICCV CVAMD 2023); the defaults are those of the authors' code."""

    form: Literal["code", "paper"] = "code"
    """code: as the authors' repository computes it; paper: as equation 6 reads."""
    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin below which a negative no longer counts."""
    epsilon_pos: float = 1.0
    """First coefficient of the positives' Taylor terms."""
    epsilon_pos_pow: float = -2.5
    """Second coefficient of the positives' Taylor terms."""
    epsilon_neg: float = 0.0
    """Coefficient of the negatives' Taylor term."""
    lamb: float = Field(default=1.5, ge=1)
    """Hill factor: negatives scored near 1 are taken as wrong labels and pull less."""


class BCEOptions(Section):
    """Binary cross-entropy, the usual baseline."""

    pos_weight: Literal["none", "balanced"] = "none"
    """balanced: positives weigh negatives / positives of their finding among the training images."""


class FocalOptions(Section):
    """Focal loss (Lin et al., ICCV 2017)."""

    gamma: float = Field(default=2.0, ge=0)
    """Focusing exponent."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of positives, 1 − alpha of negatives (0.25 in the paper, for detection); null: both 1."""


class CBOptions(Section):
    """Class-balanced loss (Cui et al., CVPR 2019): findings weighted by the inverse of their effective number."""

    beta: float = Field(default=0.9999, ge=0, lt=1)
    """How fast further images of a finding stop counting."""
    gamma: float = Field(default=0.0, ge=0)
    """Focusing exponent; 0 is cross-entropy, 2 the paper's focal variant."""


class ASLOptions(Section):
    """Asymmetric loss (Ridnik et al., ICCV 2021)."""

    gamma_pos: float = Field(default=1.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin below which a negative no longer counts."""
    detach_focus: bool = True
    """No gradient through the focusing factor, as the authors' code does by default."""


class CWASLOptions(Section):
    """Class-weighted ASL of the CXR-LT 2023 winner (CheXFusion): positives weigh e^(1 − p), negatives e^p, p the prevalence."""

    gamma_pos: float = Field(default=1.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin below which a negative no longer counts."""


class APLOptions(Section):
    """Asymmetric polynomial loss (Huang et al., ICASSP 2023)."""

    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=0)
    """Focusing exponent of negatives."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin below which a negative no longer counts."""
    epsilon_pos: float = 1.0
    """First coefficient of the positives' Taylor terms."""
    epsilon_pos_pow: float = -2.5
    """Second coefficient of the positives' Taylor terms."""
    epsilon_neg: float = 0.0
    """Coefficient of the negatives' Taylor term."""
    detach_focus: bool = True
    """No gradient through the focusing factor, as the authors' code does by default."""


class HillOptions(Section):
    """Hill loss (Zhang et al., 2021, arXiv 2112.07368), for labels with missing positives."""

    lamb: float = Field(default=1.5, ge=1)
    """Where the hill of the negatives' loss stands: their slope falls again towards p = 1."""
    margin: float = 1.0
    """Taken off the logit of a positive."""
    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent of positives."""


class SPLCOptions(Section):
    """Self-paced loss correction (Zhang et al., 2021, arXiv 2112.07368): confident negatives become positives."""

    tau: float = Field(default=0.6, gt=0, lt=1)
    """Sigmoid above which a negative is taken for a missed positive."""
    change_epoch: int = Field(default=1, ge=0)
    """Epoch, from 0, at which the correction begins."""
    margin: float = 1.0
    """Taken off the logit of a labelled positive."""
    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent."""


class DBOptions(Section):
    """Distribution-balanced loss (Wu et al., ECCV 2020), as configured for COCO-MLT."""

    gamma: float = Field(default=2.0, ge=1)
    """Focusing exponent."""
    balance: float = Field(default=2.0, gt=0)
    """Constant factor of the focal form."""
    map_alpha: float = 0.1
    """Least weight of a label."""
    map_beta: float = Field(default=10.0, gt=0)
    """Steepness of the map from resampling rate to weight."""
    map_gamma: float = 0.2
    """Resampling rate at the middle of the map."""
    neg_scale: float = Field(default=2.0, ge=1)
    """How much harder a negative is pushed, at a weight smaller by the same factor."""
    neg_bias: float = Field(default=0.05, ge=0)
    """Strength of the prior's bias on the logits."""


class LDAMOptions(Section):
    """Label-distribution-aware margins (Cao et al., NeurIPS 2019) in multi-label form, with deferred re-weighting."""

    max_margin: float = Field(default=0.5, gt=0)
    """Margin of the rarest finding; the others' shrink with the fourth root of their number of positives."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the logits after the margin (the authors' 30 is for cosines; a linear head needs none)."""
    defer_epoch: int = Field(default=160, ge=0)
    """Epoch, from 0, at which class-balanced weights begin (the authors': 160 of 200)."""
    beta: float = Field(default=0.9999, ge=0, lt=1)
    """As in the class-balanced loss."""


class TwoWayOptions(Section):
    """Two-way loss (Kobayashi, CVPR 2023): positives against negatives along findings and along images."""

    tp: float = Field(default=4.0, gt=0)
    """Temperature of the positives."""
    tn: float = Field(default=1.0, gt=0)
    """Temperature of the negatives."""


class ZLPROptions(Section):
    """Zero-bounded log-sum-exp and pairwise rank loss (Su et al., 2022, arXiv 2208.02955); it has no options."""


class MFMOptions(Section):
    """Multi-focal modifier of COMIC (Zhang et al., ICCV 2023): ASL whose focus and weight grow with rarity."""

    gamma_pos: float = Field(default=0.0, ge=0)
    """Focusing exponent of positives."""
    gamma_neg: float = Field(default=4.0, ge=1)
    """Focusing exponent of negatives, before the finding's own is added."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Probability margin below which a negative no longer counts."""
    power: float = Field(default=1 / 6, gt=0)
    """A finding's weight is (1 − log(p / largest p)) to this power."""
    detach_focus: bool = True
    """No gradient through the focusing factor, as the authors' code does by default."""


class LossConfig(Section):
    """The training loss. Every loss has a block of options; `name` says which is used."""

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
        "mfm",
    ]
    """Which loss; each is described at its block of options."""
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
    mfm: MFMOptions = MFMOptions()
    """Options of mfm."""
