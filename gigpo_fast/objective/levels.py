"""Levels: over which tokens a statistic of the rollout is taken before it becomes a weight."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from .batch import TokenBatch
from .block import Block, Scope


class Level(Block):
    """A block that pools one number a token over the token's unit, and gives every token of the unit the result."""

    zero_at_zero_advantage: ClassVar[bool] = True

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        """(n,) from (n,)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TokenLevel(Level):
    """The token alone."""

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        return values


class _SequenceLevel(Level):
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class SequenceSum(_SequenceLevel):
    """The sum over the sequence: of log-ratios, the log of the sequence's own ratio."""

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        return batch.sequence_sums(values)


@dataclasses.dataclass(frozen=True)
class SequenceMean(_SequenceLevel):
    """The mean over the sequence: of log-ratios, the log of the geometric mean."""

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        return batch.sequence_means(values)


@dataclasses.dataclass(frozen=True)
class SequenceMax(_SequenceLevel):
    """The largest over the sequence: one token far off condemns it all."""

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        return batch.sequence_largest(values)


@dataclasses.dataclass(frozen=True)
class SegmentMean(_SequenceLevel):
    """The mean over the token's segment (extras["segment_ids"], int64), which lies within one sequence: a turn."""

    reads: ClassVar[tuple[str, ...]] = ("segment_ids",)

    def pool(self, batch: TokenBatch, values: Tensor) -> Tensor:
        labels = batch.extras["segment_ids"]
        return batch.label_sums(values, labels) / batch.label_sums(torch.ones_like(values), labels).clamp(min=1)
