"""The arms of the study: what each trains with. A new loss is one line of `ARMS`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ral.errors import UserError

Changes: TypeAlias = Mapping[str, object]

# Networks with a name of their own: timm name and options. resnet10t_narrow is the default of params.yaml.
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "resnet10t_narrow": ("resnet10t", {"channels": [32, 64, 128, 256], "stem_width": 16})
}
# Learning rates that every arm is tried with on fold 0.
RATES = (3e-4, 1e-3, 3e-3)
# LDAM's authors start their class weights after this share of the epochs.
DEFERRED = 0.8


@dataclass(frozen=True)
class Arm:
    """What an arm changes in the common recipe."""

    loss: str
    """Key of `ral.losses.LOSSES`."""
    options: Changes = field(default_factory=dict)
    """Options of the loss that are not its defaults."""
    adjust: str = "none"
    """Logit adjustment, `loss.adjust`."""
    every_fold: bool = False
    """Whether all folds are run before the first fold of other arms."""
    late: bool = False
    """Whether the arm comes after the stages that build on the first arms."""
    summed: bool = False
    """Whether the authors sum the loss over labels; it then gets a scale (`benchmarks.study.scales`)."""
    rates: tuple[float, ...] = RATES
    """Learning rates to try; a single one is not tried but used."""
    authors_recipe: bool = False
    """Whether the arm is the RAL authors' recipe (`benchmarks.study.authors`)."""
    train: Changes = field(default_factory=dict)
    """Changes of the section train."""
    classifier: bool = False
    """Whether the classifier is retrained with a class-aware sampler (cRT)."""
    flip: bool = False
    """Whether logits are the means of an image's and its mirror image's."""


ARMS = {
    "reference": Arm("ral", every_fold=True, rates=(1e-4,), authors_recipe=True),
    "bce": Arm("bce", every_fold=True),
    "balanced_bce": Arm("bce", {"pos_weight": "balanced"}, every_fold=True),
    "asl": Arm("asl", every_fold=True, summed=True),
    "cw_asl": Arm("cw_asl", every_fold=True, summed=True),
    "ral": Arm("ral", every_fold=True, summed=True),
    "focal": Arm("focal"),
    "cb": Arm("cb"),
    "apl": Arm("apl", summed=True),
    "hill": Arm("hill", summed=True),
    "db": Arm("db"),
    "ldam": Arm("ldam"),
    "zlpr": Arm("zlpr", summed=True),
    "two_way": Arm("two_way"),
    "mfm": Arm("mfm", summed=True),
    "ral_paper": Arm("ral", {"form": "paper"}, summed=True),
    "z_loss": Arm("z_loss", late=True),
    "comp_sum": Arm("comp_sum", late=True),
    "hybrid": Arm("hybrid", late=True),
    "rlc": Arm("rlc", late=True),
    "mfm_cooccurrence": Arm("mfm", {"cooccurrence": True}, late=True, summed=True),
    "dice": Arm("dice", late=True),
    "anyloss": Arm("anyloss", late=True),
    "bce_adjusted": Arm("bce", adjust="static", late=True),
    "bce_smoothed": Arm("bce", train={"label_smoothing": 0.1}, late=True),
    "bce_mixup": Arm("bce", train={"mixup": 0.2}, late=True),
}

# What the stage extra adds to an arm, as `ral+ema`.
STEPS = ("ema", "flip_tta", "crt", "class_aware", "repeat_factor", "inverse_frequency", "temperature")


def base(name: str) -> str:
    """The arm that a name is built on: `ral` of `ral+ema`."""
    return name.partition("+")[0]


def arm(name: str) -> Arm:
    """The arm of a name, with the step that the name adds.

    Raises:
        UserError: there is no such arm or step.
    """
    start, _, step = name.partition("+")
    if start not in ARMS:
        raise UserError(f"No arm is called {start}. Arms: {', '.join(ARMS)}.")
    plain = ARMS[start]
    if not step:
        return plain
    if step not in STEPS:
        raise UserError(f"No step is called {step}. Steps: {', '.join(STEPS)}.")
    if step == "ema":
        return replace(plain, train={"ema_decay": 0.99})
    if step == "flip_tta":
        return replace(plain, flip=True)
    if step == "crt":
        return replace(plain, classifier=True)
    return replace(plain, train={"sampler": {"name": step}})
