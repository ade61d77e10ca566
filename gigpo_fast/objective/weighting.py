"""Weights: a factor for each token, constant in the log-probs; a mask is a factor of 0 or 1."""

import dataclasses
import functools
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Block, Scope, declare


class Weighting(Block):
    """A block that gives each token a factor, constant in log_probs."""

    zero_at_zero_advantage: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        """(n,) factor of each token."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TokenWeights(Weighting):
    """The factor is extras["weights"], for example a rollout correction computed once per batch."""

    reads: ClassVar[tuple[str, ...]] = ("weights",)
    known_on_policy: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        return batch.extras["weights"]


@dataclasses.dataclass(frozen=True)
class Product(Weighting):
    """The product of several weightings: masks that all must allow a token, and a correction beside a mask."""

    factors: tuple[Weighting, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.factors, tuple) or not self.factors or not all(isinstance(part, Weighting) for part in self.factors):
            raise TypeError(f"Product: factors must be a tuple of Weighting blocks, got {self.factors!r}; see gigpo_fast.objective")
        declare(self, self.factors)

    def factor(self, batch: TokenBatch) -> Tensor:
        return functools.reduce(torch.mul, (part.factor(batch) for part in self.factors))


@dataclasses.dataclass(frozen=True)
class Normalized(Weighting):
    """A weighting divided by its mean over the trained tokens: of a mask, so that a token mean divides by the tokens kept.

    The mean is that of this call, or `mean` from outside. Where every weight is 0 it stays 0.
    """

    weighting: Weighting
    mean: float | None = number(None, above=0)

    def __post_init__(self) -> None:
        if not isinstance(self.weighting, Weighting):
            raise TypeError(f"Normalized: weighting must be a Weighting block, got {self.weighting!r}; see gigpo_fast.objective")
        declare(self, (self.weighting,), **({"scope": Scope.BATCH, "known_on_policy": False} if self.mean is None else {}))

    def factor(self, batch: TokenBatch) -> Tensor:
        factor = self.weighting.factor(batch)
        if self.mean is not None:
            return factor / self.mean
        mean = batch.mean(factor)
        return torch.where(mean > 0, factor / torch.where(mean > 0, mean, 1), 0)
