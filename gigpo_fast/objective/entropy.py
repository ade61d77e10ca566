"""The entropy term: a bonus or a target for H_t, the exact entropy over the vocabulary, not a sample's estimate."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Block, Scope


class EntropyTerm(Block):
    """A block that adds a function of the entropy to each trained token's loss."""

    needs_entropy: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch) -> Tensor:
        """(n,) what the term adds to the loss."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EntropyBonus(EntropyTerm):
    """Subtracts coefficient * entropy from each trained token's loss. A negative coefficient penalises entropy."""

    coefficient: float = number(fix="0.001 is a usual value")

    def loss(self, batch: TokenBatch) -> Tensor:
        """(n,) what the bonus adds to the loss."""
        return -self.coefficient * batch.entropy


@dataclasses.dataclass(frozen=True)
class EntropyTarget(EntropyTerm):
    """coefficient * |mean H - target|: PPO-max (arXiv 2307.04964; target 35, coefficient 0.01 in the released code).

    The mean is over the trained tokens of this call, or `mean` if it is given from outside; summed over tokens with the weights of
    a token mean, sign(mean H - target) (H_t - target) is that value with its gradient.
    """

    coefficient: float = number(low=0)
    target: float
    mean: float | None = None

    def __post_init__(self) -> None:
        if self.mean is None:
            object.__setattr__(self, "scope", Scope.BATCH)
            object.__setattr__(self, "known_on_policy", False)

    def loss(self, batch: TokenBatch) -> Tensor:
        mean = batch.mean(batch.entropy.detach()) if self.mean is None else self.mean
        side = torch.sign(torch.as_tensor(mean, dtype=batch.entropy.dtype, device=batch.entropy.device) - self.target)
        return self.coefficient * side * (batch.entropy - self.target)
