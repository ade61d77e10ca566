"""TOPR: good actions are imitated, bad ones unlearned with truncated importance weights."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Surrogate


@dataclasses.dataclass(frozen=True)
class TOPR(Surrogate):
    """L = -A log_prob for good actions, -sg(clip(rho, low, high)) A log_prob for bad ones: tapered off-policy REINFORCE (arXiv 2503.14286).

    Good is A > 0, or with `split_on_scores` extras["scores"] > 0 (the reward before any baseline, as the paper has it and ROLL does).
    """

    positive_weight: float = number(1.0, low=0)
    negative_weight: float = number(1.0, low=0)
    low: float = number(0.0, low=0)
    high: float = 1.0
    split_on_scores: bool = False
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"TOPR: high must be a number >= {self.low}, got {self.high!r}; it is the upper end of the interval from low")
        object.__setattr__(self, "reads", ("scores",) if self.split_on_scores else ())

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        good = (batch.extras["scores"] if self.split_on_scores else batch.advantages) > 0
        tapered = self.negative_weight * torch.exp(log_ratio.detach()).clamp(self.low, self.high)
        weight = torch.where(good, self.positive_weight, tapered)
        return -weight * batch.advantages * batch.log_probs
