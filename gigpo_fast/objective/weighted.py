"""Surrogates made of surrogates: one with a weight of the policy term alone, and weighted sums of several."""

import dataclasses

import torch
from torch import Tensor

from .batch import TokenBatch
from .block import declare
from .surrogate import Clipped, Surrogate, held_finite
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class Weighted(Surrogate):
    """weighting * surrogate: a factor of the policy term alone, so that divergence and entropy keep their full weight.

    The factor is a constant. A token whose factor is 0 adds exactly 0, whatever its surrogate.
    """

    surrogate: Surrogate
    weighting: Weighting

    def __post_init__(self) -> None:
        for name, kind in (("surrogate", Surrogate), ("weighting", Weighting)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Weighted: {name} must be a {kind.__name__} block, got {getattr(self, name)!r}; see gigpo_fast.objective")
        declare(self, (self.surrogate, self.weighting), zero_at_zero_advantage=self.surrogate.zero_at_zero_advantage)

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        factor = self.weighting.factor(batch).detach()
        return torch.where(factor == 0, 0, factor * self.surrogate.loss(batch, held_finite(log_ratio, factor == 0)))

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        return self.surrogate.clipped(batch, ratio)


@dataclasses.dataclass(frozen=True)
class SurrogateSum(Surrogate):
    """sum of coefficients[i] * terms[i]: auxiliary losses, or a policy term that is switched off by a coefficient of 0.

    The metrics of clipping are those of the first term.
    """

    terms: tuple[Surrogate, ...]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple) or not self.terms or not all(isinstance(term, Surrogate) for term in self.terms):
            raise TypeError(f"SurrogateSum: terms must be a tuple of Surrogate blocks, got {self.terms!r}; see gigpo_fast.objective")
        if len(self.coefficients) != len(self.terms):
            raise ValueError(
                f"SurrogateSum: coefficients must be {len(self.terms)} numbers in a tuple, one a term, got {self.coefficients!r}"
            )
        declare(self, self.terms)

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return sum(c * term.loss(batch, log_ratio) for c, term in zip(self.coefficients, self.terms))

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        return self.terms[0].clipped(batch, ratio)
