"""DPPO: tokens leave the loss by how far their probability moved, not by how far the ratio did."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .divergence import BinaryKL
from .surrogate import Clipped, Surrogate, held_finite


class _Gated(Surrogate):
    low: float
    high: float
    maximum: float | None
    score_function: bool
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        low, high = self._outside(batch)
        held = self.maximum is not None or low | high | (batch.advantages == 0)
        ratio = torch.exp(held_finite(log_ratio, held, self.maximum or 1.0))
        ratio = ratio if self.maximum is None else ratio.clamp(max=self.maximum)
        term = ratio.detach() * batch.log_probs if self.score_function else ratio
        return torch.where(low | high, 0, -batch.advantages * term)

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        low, high = self._outside(batch)
        capped = torch.zeros_like(low) if self.maximum is None else ratio > self.maximum
        return Clipped(low, high, capped & ~(low | high))  # dual: the maximum binds, whatever the advantage

    def _outside(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Bool (n,) each: a bad action that already fell too far, any other that already rose too far."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DPPOTV(_Gated):
    """L = -A sg(min(rho, maximum)) log_prob, 0 where p - p_old > high (A > 0) or < -low (else): DPPO by total variation (arXiv 2602.04879).

    With `score_function` False the gradient goes through the ratio: L = -A min(rho, maximum) (prime-rl). p = exp(log_prob).
    """

    low: float = number(0.2, low=0)
    high: float = number(0.2, low=0)
    maximum: float | None = number(20.0, above=0)
    score_function: bool = True

    def _outside(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        moved, good = torch.exp(batch.log_probs.detach()) - torch.exp(batch.old()), batch.advantages > 0
        return ~good & (moved < -self.low), good & (moved > self.high)


@dataclasses.dataclass(frozen=True)
class DPPOKL(_Gated):
    """DPPOTV with KL(p_old || p) of "this token" and "any other" for a distance: 0 where p rose (A > 0) or fell (else) beyond the bound."""

    low: float = number(0.05, low=0)
    high: float = number(0.05, low=0)
    maximum: float | None = number(20.0, above=0)
    score_function: bool = True

    def _outside(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        new, old, good = batch.log_probs.detach(), batch.old(), batch.advantages > 0
        distance = BinaryKL().value(old, new)
        return ~good & (new < old) & ~(distance <= self.low), good & (new > old) & ~(distance <= self.high)
