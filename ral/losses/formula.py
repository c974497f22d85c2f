"""The options of the asymmetric losses, as passed to the fused implementation and the Triton kernel."""

from typing import NamedTuple

from torch import Tensor

from ral.losses import terms


class Formula(NamedTuple):
    """The options of `ral.losses.terms`."""

    gamma_pos: float = 0.0
    gamma_neg: float = 0.0
    clip: float = 0.0
    epsilon_pos: float = 0.0
    epsilon_pos_pow: float = 0.0
    epsilon_neg: float = 0.0
    lamb: float = 1.5
    hill: int = terms.NO_HILL
    detach: bool = False

    def positive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gain (the negated loss) and slope of positives."""
        return terms.positive(x, self.gamma_pos, self.epsilon_pos, self.epsilon_pos_pow, self.detach)

    def negative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gain (the negated loss) and slope of negatives."""
        options = (self.gamma_neg, self.clip, self.epsilon_neg, self.lamb, self.hill, self.detach)
        return terms.negative(x, *options)
