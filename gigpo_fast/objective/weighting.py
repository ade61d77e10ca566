"""Weights: a factor for each token's whole term, read from `extras`."""

import dataclasses
from typing import ClassVar

from torch import Tensor

from .batch import TokenBatch
from .block import Block


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

    def factor(self, batch: TokenBatch) -> Tensor:
        return batch.extras["weights"]
