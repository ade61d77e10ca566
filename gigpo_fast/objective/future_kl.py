"""FIPO: a token weighs more where what follows it has become more probable."""

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class FutureKL(Weighting):
    """exp(F_t), F_t = sum over k >= t of 2^-((k - t) / half_life) (log_prob - old)_k, within the sequence: FIPO (arXiv 2603.19835).

    The token itself is included. k - t counts every position, trained or not, so extras["position_ids"] (int64) says where in its
    sequence a token stands, in any layout: torch.arange(T).expand(B, T) of padded rows. The weight is clipped to [1, 1 + clip], or with
    `both_sides` to [1 - clip, 1 + clip]; so by default a future that fell never weighs less. Bad tokens (A < 0) whose own ratio exceeds
    `safety` weigh at most 1, and at least 1 - clip. Tokens whose ratio exceeds `ratio_limit` are left out of every F. Clip 0.2,
    half-life 32, safety 4: ms-swift's defaults. float64 inside; sequences may not be cut over ranks.
    """

    half_life: int = number(32, low=1, fix="32 is the paper's decay rate")
    clip: float | None = number(0.2, low=0)
    both_sides: bool = False
    safety: float | None = number(4.0, above=0)
    ratio_limit: float | None = number(None, above=0)
    reads: ClassVar[tuple[str, ...]] = ("position_ids",)
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        log_ratio = batch.log_ratio().detach()
        ratio = torch.exp(log_ratio)
        counted = batch.trained() if self.ratio_limit is None else batch.trained() & (ratio <= self.ratio_limit)
        weight = torch.exp(self.future(batch, torch.where(counted, log_ratio, 0))).to(log_ratio.dtype)
        if self.clip is not None:
            weight = weight.clamp(1 - self.clip if self.both_sides else 1.0, 1 + self.clip)
        if self.safety is None:
            return weight
        least = 0.0 if self.clip is None else 1 - self.clip
        return torch.where((batch.advantages < 0) & (ratio > self.safety), weight.clamp(least, 1.0), weight)

    def future(self, batch: TokenBatch, values: Tensor) -> Tensor:
        """(n,) float64 discounted sum of `values` from each token to the end of its sequence.

        By doubling: sums over 2 d tokens are those over d, and those d tokens later, discounted by the distance in positions. Tokens
        are first brought into the order of sequence and position; beyond 60 half-lives nothing is left of a value.
        """
        if batch.sequences.group_name:
            raise ValueError("FutureKL: sequences must lie on one rank, got sequences that are cut over ranks; gather them")
        sequence, positions = batch.sequences.ids, torch.where(batch.trained(), batch.extras["position_ids"], 0)
        order = torch.argsort(positions, stable=True)
        order = order.index_select(0, torch.argsort(sequence.index_select(0, order), stable=True))
        sequence, positions, sums = (each.index_select(0, order) for each in (sequence, positions, values.double()))
        place = torch.arange(order.shape[0], device=order.device)
        for doubling in range(math.ceil(math.log2(60 * self.half_life)) + 1):
            after = place + 2**doubling
            other = after.clamp(max=order.shape[0] - 1)
            same = (after < order.shape[0]) & (sequence.index_select(0, other) == sequence)
            distance = (positions.index_select(0, other) - positions).double()
            sums = sums + torch.where(same, torch.exp2(-distance / self.half_life) * sums.index_select(0, other), 0.0)
        return torch.empty_like(sums).scatter_(0, order, sums)
