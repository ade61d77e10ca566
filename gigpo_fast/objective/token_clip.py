"""PPO's clip with a pair of bounds for each token."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Clipped, Surrogate, held_finite


@dataclasses.dataclass(frozen=True)
class TokenClip(Surrogate):
    """L = max(-rho A, -clip(rho, 1 - low_t, 1 + high_t) A) with low_t, high_t from extras["clip_low"], extras["clip_high"].

    `dual` bounds the loss of a bad action as in Clip (arXiv 1707.06347, equation 7; arXiv 1912.09729, equation 5).
    """

    dual: float | None = number(None, above=1)
    reads: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        low, high = self._bounds(batch)
        ratio = torch.exp(held_finite(log_ratio, self.dual is not None or batch.advantages >= 0, high.clamp(min=self.dual or 1.0)))
        loss = torch.maximum(-batch.advantages * ratio, -batch.advantages * torch.minimum(torch.maximum(ratio, low), high))
        if self.dual is not None:
            loss = torch.where(batch.advantages < 0, torch.minimum(loss, -self.dual * batch.advantages), loss)
        return loss

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        (low, high), bad = self._bounds(batch), batch.advantages < 0
        dual = torch.zeros_like(bad) if self.dual is None else bad & (torch.maximum(ratio, low) > self.dual)
        return Clipped(bad & (ratio < low), (batch.advantages > 0) & (ratio > high), dual)

    def _bounds(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return 1 - batch.extras["clip_low"], 1 + batch.extras["clip_high"]
