"""Aggregation: how the tokens' losses become one number, apart from its denominator.

loss = sum over tokens of weight_t * loss_t / denominator. The weight is the aggregation's; the denominator is an
argument of the call, and `count` is what it is when nobody gives one.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import Sequences
from .block import Block


class Aggregation(Block):
    """A block that weighs tokens and counts what they are averaged over."""

    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True
    counts: ClassVar[str] = "something of its own"  # what the denominator counts: aggregations that count the same may share it

    def weights(self, mask: Tensor, sequences: Sequences | None, dtype: torch.dtype) -> Tensor:
        """Weight of each token, shaped like mask."""
        return torch.ones_like(mask, dtype=dtype)

    def count(self, mask: Tensor, sequences: Sequences | None) -> Tensor:
        """0-dim, this call's own denominator."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TokenMean(Aggregation):
    """Every trained token counts the same (DAPO, arXiv 2503.14476). Denominator: trained tokens."""

    counts: ClassVar[str] = "tokens"

    def count(self, mask: Tensor, sequences: Sequences | None) -> Tensor:
        return mask.sum()


@dataclasses.dataclass(frozen=True)
class TokenSum(Aggregation):
    """The plain sum over trained tokens. Denominator: 1."""

    counts: ClassVar[str] = "nothing"

    def count(self, mask: Tensor, sequences: Sequences | None) -> Tensor:
        return torch.ones((), device=mask.device, dtype=torch.float32)


class _SequenceMean(Aggregation):
    counts: ClassVar[str] = "sequences"
    needs_sequences: ClassVar[bool] = True

    def count(self, mask: Tensor, sequences: Sequences | None) -> Tensor:
        return (sequences.lengths > 0).sum()


@dataclasses.dataclass(frozen=True)
class SequenceMeanTokenSum(_SequenceMean):
    """Sum over a sequence's tokens, mean over sequences. Denominator: sequences with a trained token."""


@dataclasses.dataclass(frozen=True)
class SequenceMeanTokenMean(_SequenceMean):
    """Mean over a sequence's tokens, then over sequences (GRPO, arXiv 2402.03300). Denominator: sequences with a trained token.

    With sequence_ids that number the prompts it is the token mean of each prompt's group, averaged over prompts.
    """

    def weights(self, mask: Tensor, sequences: Sequences | None, dtype: torch.dtype) -> Tensor:
        return (1.0 / sequences.lengths.to(dtype).clamp(min=1))[sequences.ids].view(mask.shape)


@dataclasses.dataclass(frozen=True)
class SequenceMeanTokenSumNorm(_SequenceMean):
    """Sum over a sequence's tokens divided by one constant length, mean over sequences (Dr. GRPO, arXiv 2503.20783).

    `length` is the longest response that can occur, not the padded width of a batch, which changes from batch to batch.
    """

    length: float = number(above=0, fix="pass the maximum response length")

    def __post_init__(self) -> None:
        if self.length == float("inf"):
            raise ValueError("SequenceMeanTokenSumNorm: length must be a finite number > 0, got inf; pass the maximum response length")

    def weights(self, mask: Tensor, sequences: Sequences | None, dtype: torch.dtype) -> Tensor:
        return torch.ones_like(mask, dtype=dtype) / self.length
