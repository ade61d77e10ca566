"""CISPO: the clipped ratio as a constant weight of the log-prob, so that every token keeps a gradient."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Clipped, Surrogate


@dataclasses.dataclass(frozen=True)
class CISPO(Surrogate):
    """L = -sg(clip(rho, 1 - low, 1 + high)) A log_prob: MiniMax-M1 (arXiv 2506.13585).

    `low` None is no lower bound, as in the paper's runs. `unified_mask` gives weight 0 to the tokens that PPO would clip (the
    paper's unified form). verl, slime, NeMo-RL and ROLL bound at 1 - low and 1 + high; for an absolute bound see CISPOAbsolute.
    """

    low: float | None = number(0.2, low=0, high=1)
    high: float = number(0.28, low=0)
    unified_mask: bool = False
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        ratio = torch.exp(log_ratio.detach())
        weight = ratio.clamp(None if self.low is None else 1 - self.low, 1 + self.high)
        if self.unified_mask:
            low, high, _ = self.clipped(batch, ratio)
            weight = torch.where(torch.where(batch.advantages > 0, high, low & (batch.advantages < 0)), 0, weight)
        return -weight * batch.advantages * batch.log_probs

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        nothing = torch.zeros_like(ratio, dtype=torch.bool)
        low = nothing if self.low is None else ratio < 1 - self.low
        return Clipped(low, ratio > 1 + self.high, nothing)  # whatever the advantage: the weight is bounded on both sides


@dataclasses.dataclass(frozen=True)
class CISPOAbsolute(Surrogate):
    """L = -sg(min(rho, maximum)) A log_prob: CISPO with an absolute bound (TRL; ScaleRL, arXiv 2510.13786).

    CISPOAbsolute(1.0) is the policy gradient with importance weights truncated at 1 (ROLL's "tis").
    """

    maximum: float = number(5.0, above=0)
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -torch.exp(log_ratio.detach()).clamp(max=self.maximum) * batch.advantages * batch.log_probs

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        nothing = torch.zeros_like(ratio, dtype=torch.bool)
        return Clipped(nothing, ratio > self.maximum, nothing)
