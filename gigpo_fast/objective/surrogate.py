"""The surrogate s(rho, A): what one token adds to the loss."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Block


class Clipped(NamedTuple):
    """Which tokens the surrogate clipped: bool (n,) each."""

    low: Tensor  # A < 0 and the ratio fell below the lower bound
    high: Tensor  # A > 0 and the ratio rose above the upper bound
    dual: Tensor  # A < 0 and the loss reached the dual bound


class Surrogate(Block):
    """A block that turns ratio and advantage into a loss per token."""

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        """(n,) loss of each token, differentiable in batch.log_probs and log_ratio."""
        raise NotImplementedError

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        """Which tokens were clipped; for the metrics only."""
        nothing = torch.zeros_like(ratio, dtype=torch.bool)
        return Clipped(nothing, nothing, nothing)


@dataclasses.dataclass(frozen=True)
class Clip(Surrogate):
    """L = max(-rho A, -clip(rho, 1 - low, 1 + high) A): PPO (arXiv 1707.06347, equation 7), asymmetric as in DAPO (arXiv 2503.14476).

    `dual` > 1 bounds the loss of a bad action: where A < 0, L = min(L, -dual A) (arXiv 1912.09729, equation 5).
    `ceiling` bounds the unclipped side, L = max(-min(rho, ceiling) A, ...): the two-sided `delta` of arXiv 2505.07291.
    """

    low: float = number(0.2, low=0, high=1, fix="the usual value is 0.2")
    high: float = number(0.2, low=0, fix="the usual value is 0.2")
    dual: float | None = number(None, above=1, fix="the usual value is 3.0")
    ceiling: float | None = number(None, above=0, fix="it bounds the ratio, for example 4.0")
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        advantages = batch.advantages
        bounded = self.dual is not None or self.ceiling is not None  # on the side of bad actions too
        ratio = torch.exp(held_finite(log_ratio, bounded or advantages >= 0, max(1 + self.high, self.dual or 1, self.ceiling or 1)))
        clipped = torch.clamp(ratio, 1 - self.low, 1 + self.high)
        loss = torch.maximum(-advantages * self._bounded(ratio), -advantages * clipped)
        if self.dual is not None:
            loss = torch.where(advantages < 0, torch.minimum(loss, -self.dual * advantages), loss)
        return loss

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        ratio, bad = self._bounded(ratio), batch.advantages < 0
        low = bad & (ratio < 1 - self.low)
        high = (batch.advantages > 0) & (ratio > 1 + self.high)
        # The bad action's loss before the dual bound is -A max(rho, 1 - low).
        dual = torch.zeros_like(bad) if self.dual is None else bad & (ratio.clamp(min=1 - self.low) > self.dual)
        return Clipped(low, high, dual)

    def _bounded(self, ratio: Tensor) -> Tensor:
        return ratio if self.ceiling is None else ratio.clamp(max=self.ceiling)


@dataclasses.dataclass(frozen=True)
class Reinforce(Surrogate):
    """L = -A log_prob: REINFORCE (Williams 1992) and GPG (arXiv 2504.02546). Reads no ratio."""

    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -batch.advantages * batch.log_probs


def held_finite(log_ratio: Tensor, held: Tensor | bool, bound: float | Tensor = 1.0) -> Tensor:
    """(n,) `log_ratio`; where `held`, at most a number far above log(bound) whose exp is finite.

    For tokens whose loss no longer depends on a ratio beyond `bound`: an infinite one would make 0 * inf of their slope of 0.
    """
    far = 80.0  # e^80 is finite in float32, and no bound that anyone sets
    at_most = log_ratio.clamp(max=torch.log(bound).clamp(min=far) if isinstance(bound, Tensor) else max(far, math.log(bound)))
    return at_most if held is True else torch.where(held, at_most, log_ratio)


def by_sign(good: Tensor, positive: float, negative: float, like: Tensor) -> Tensor:
    """(n,) `positive` where good, `negative` elsewhere, in like's dtype: torch.where of two floats would round them to float32."""
    return torch.where(good, torch.full_like(like, positive), torch.full_like(like, negative))
