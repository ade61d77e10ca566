"""Weights of a likelihood by the token's own probability or by its advantage."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class UncertainTokens(Weighting):
    """p (1 - p) of the policy, as a constant: CHORD's phi (arXiv 2508.11408), most for tokens that are neither known nor strange."""

    def factor(self, batch: TokenBatch) -> Tensor:
        probability = torch.exp(batch.log_probs.detach())
        return probability * (1 - probability)


@dataclasses.dataclass(frozen=True)
class AdvantageWeight(Weighting):
    """exp(A / temperature), at most `maximum`: REC's weighting of the data by the advantage (arXiv 2509.24203)."""

    temperature: float = number(1.0, above=0)
    maximum: float | None = number(None, above=0)
    known_on_policy: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        return advantage_weight(batch.advantages, self.temperature, self.maximum)


def advantage_weight(advantages: Tensor, temperature: float, maximum: float | None) -> Tensor:
    """(n,) min(exp(A / temperature), maximum)."""
    weight = torch.exp(advantages / temperature)
    return weight if maximum is None else weight.clamp(max=maximum)
