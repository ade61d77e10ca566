"""REAL: rewards are labels, and a group's answers are classified by how their probability moved."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .surrogate import Surrogate


@dataclasses.dataclass(frozen=True)
class RewardLabels(Surrogate):
    """L = log(1 + sum over bad answers of exp(s / tau)) + log(1 + sum over good ones of exp(-s / tau)) per group: REAL (arXiv 2602.05630).

    s is the mean log-ratio of the answer's tokens. Groups without both kinds add nothing. Reads extras["group_ids"] (int64) and
    extras["correct"] (bool; in ms-swift A > 0), both constant over an answer; advantages are not read. Use SequenceMeanTokenMean() and
    the number of all groups, those that add nothing included, as the denominator: each group's loss is spread evenly over its answers and
    their tokens. A call must hold whole groups.
    """

    tau: float = number(0.5, above=0)
    reads: ClassVar[tuple[str, ...]] = ("group_ids", "correct")
    scope: ClassVar[Scope] = Scope.BATCH
    needs_sequences: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        groups, good = batch.extras["group_ids"], batch.extras["correct"] > 0
        share = 1 / batch.sequence_lengths()  # the shares of an answer's tokens add up to one answer
        goods, bads = (batch.label_sums(torch.where(kind, share, 0), groups) for kind in (good, ~good))
        mixed = (goods > 0.5) & (bads > 0.5)
        signed = batch.sequence_means(batch.log_ratio()) / self.tau
        signed = torch.where(good, -signed, signed)
        signed = torch.where(mixed, signed, 0)
        sides = (self._log_one_plus(batch, signed, torch.where(kind, share, 0), kind, groups) for kind in (good, ~good))
        return torch.where(mixed, sum(sides) / torch.where(mixed, goods + bads, 1), 0)

    @staticmethod
    def _log_one_plus(batch: TokenBatch, exponents: Tensor, share: Tensor, kind: Tensor, groups: Tensor) -> Tensor:
        """(n,) log(1 + sum of exp) over the answers of one kind in the token's group, shifted by the largest so that nothing overflows."""
        kind = kind if batch.mask is None else kind & batch.mask
        top = batch.label_largest(torch.where(kind, exponents, float("-inf")).detach(), groups).clamp(min=0)
        inside = torch.where(kind, exponents - top, 0)
        return top + torch.log(torch.exp(-top) + batch.label_sums(torch.where(kind, share * torch.exp(inside), 0), groups))
