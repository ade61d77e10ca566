"""Supervised surrogates: the negative log-likelihood, plain or weighted by the exponential of the advantage."""

import dataclasses
from typing import ClassVar

from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .likelihood_weights import advantage_weight
from .surrogate import Surrogate


@dataclasses.dataclass(frozen=True)
class NegativeLogLikelihood(Surrogate):
    """L = -log_prob. Weighted(NegativeLogLikelihood(), TokenWeights()) is a weighted one; PositiveScores() makes it rejection sampling."""

    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -batch.log_probs


@dataclasses.dataclass(frozen=True)
class AdvantageWeightedNLL(Surrogate):
    """L = -min(exp(A / temperature), maximum) log_prob: advantage-weighted regression (arXiv 1910.00177)."""

    temperature: float = number(1.0, above=0)
    maximum: float | None = number(None, above=0)
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -advantage_weight(batch.advantages, self.temperature, self.maximum) * batch.log_probs
