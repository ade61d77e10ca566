"""GMPO: the geometric mean of a sequence's token ratios, each clipped in log space."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .surrogate import Clipped, Surrogate


@dataclasses.dataclass(frozen=True)
class GMPO(Surrogate):
    """L = -A exp(mean over the sequence of the clipped log-ratio): geometric-mean policy optimization (arXiv 2507.20673).

    A token's log-ratio is clipped to [-low, high] on the side where that lowers the objective: min(log rho, high) for A > 0,
    max(log rho, -low) for A < 0. The ratio block must be one of tokens (TokenRatio); the mean is taken here.
    """

    low: float = number(0.4, low=0)
    high: float = number(0.4, low=0)
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        sign = torch.sign(batch.advantages)
        kept = torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-self.low, self.high))
        return -batch.advantages * torch.exp(batch.sequence_means(sign * kept))

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        log_ratio = torch.log(ratio)
        low = (batch.advantages < 0) & (log_ratio < -self.low)
        return Clipped(low, (batch.advantages > 0) & (log_ratio > self.high), torch.zeros_like(low))
