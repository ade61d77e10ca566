"""Masks by rank: the most uncertain tokens, and those that move the entropy most. They need statistics of many tokens.

The statistics are of the tokens of this call (Scope.BATCH: two passes, and another answer for another split), or they are given from
outside, from the whole batch: then the block is a function of the token alone and any split gives the same result.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Block, Scope
from .token_masks import check_seed, uniform
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class TopEntropy(Weighting):
    """1 for the `fraction` of tokens with the highest entropy, else 0: beyond the 80/20 rule (arXiv 2506.01939, fraction 0.2).

    Kept are entropies >= the interpolated (1 - fraction) quantile (TRL), or with `exact_count` exactly ceil(fraction N) tokens
    (the authors' code). `threshold` is the quantile from outside. The paper divides by the tokens kept: Normalized(TopEntropy(...)).
    """

    fraction: float = number(0.2, low=0, high=1)
    exact_count: bool = False
    threshold: float | None = None
    needs_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold is not None and self.exact_count:
            raise ValueError("TopEntropy: exact_count must be False with a threshold, got True; a threshold cannot count")
        object.__setattr__(self, "scope", Scope.BATCH if self.threshold is None else Scope.TOKEN)

    def factor(self, batch: TokenBatch) -> Tensor:
        entropy = batch.entropy.detach()
        if self.exact_count:
            count = torch.ceil(batch.count().double() * self.fraction - 1e-9)
            return (descending_rank(entropy, batch.trained()) < count).to(entropy.dtype)
        threshold = masked_quantile(entropy, batch.trained(), 1 - self.fraction) if self.threshold is None else self.threshold
        return (entropy >= threshold).to(entropy.dtype)


@dataclasses.dataclass(frozen=True)
class CovarianceStatistics(Block):
    """Statistics of a whole batch: means over its trained tokens, and what is cut off.

    `cutoff` is the covariance from which CovarianceTop keeps, or the share of its candidates that CovarianceBand drops.
    """

    mean_advantage: float
    mean_log_prob: float
    cutoff: float


class _Covariance(Weighting):
    statistics: CovarianceStatistics | None

    def covariance(self, batch: TokenBatch) -> Tensor:
        """(n,) (A - mean A) (log_prob - mean log_prob): each token's share of what lowers the entropy."""
        log_probs, found = batch.log_probs.detach(), self.statistics
        means = (batch.mean(batch.advantages), batch.mean(log_probs)) if found is None else (found.mean_advantage, found.mean_log_prob)
        return (batch.advantages - means[0]) * (log_probs - means[1])

    def _check(self, name: str) -> None:
        if self.statistics is not None and not isinstance(self.statistics, CovarianceStatistics):
            raise TypeError(f"{name}: statistics must be a CovarianceStatistics block or None, got {self.statistics!r}")
        object.__setattr__(self, "scope", Scope.BATCH if self.statistics is None else Scope.TOKEN)


@dataclasses.dataclass(frozen=True)
class CovarianceTop(_Covariance):
    """1 for the max(1, int(fraction N)) tokens of largest covariance, else 0; none for fraction 0: KL-Cov (arXiv 2505.22617).

    KL-Cov is Unclipped() with KLPenalty(coefficient, AbsoluteKL(), anchor="old", weighting=CovarianceTop(...)); the paper's
    fraction is 2e-3 (7B) or 2e-4 (32B), its coefficient 1.
    """

    fraction: float = number(2e-3, low=0, high=1)
    statistics: CovarianceStatistics | None = None

    def __post_init__(self) -> None:
        self._check("CovarianceTop")

    def factor(self, batch: TokenBatch) -> Tensor:
        covariance = self.covariance(batch)
        if self.statistics is not None:
            return (covariance >= self.statistics.cutoff).to(covariance.dtype)
        count = torch.floor(batch.count().double() * self.fraction + 1e-9).clamp(min=1)
        kept = descending_rank(covariance, batch.trained()) < count
        return kept.to(covariance.dtype) * (self.fraction > 0)


@dataclasses.dataclass(frozen=True)
class CovarianceBand(_Covariance):
    """0 for max(1, int(fraction N)) randomly drawn tokens with low < covariance < high, else 1: Clip-Cov (arXiv 2505.22617).

    Tokens that the ratio's clip to [1 - clip_low, 1 + clip_high] has already taken out are not candidates. The draw is by the hash
    of extras["token_keys"] and `seed` (see RandomFraction). The paper clips ratios to [0, 2]: clip_low = clip_high = 1.
    """

    fraction: float = number(2e-4, low=0, high=1)
    low: float = 1.0
    high: float = 5.0
    clip_low: float = number(1.0, low=0)
    clip_high: float = number(1.0, low=0)
    seed: int = 0
    statistics: CovarianceStatistics | None = None
    reads: ClassVar[tuple[str, ...]] = ("token_keys",)

    def __post_init__(self) -> None:
        self._check("CovarianceBand")
        check_seed("CovarianceBand", self.seed)

    def factor(self, batch: TokenBatch) -> Tensor:
        covariance, ratio = self.covariance(batch), torch.exp(batch.log_ratio().detach())
        clipped = ((batch.advantages > 0) & (ratio > 1 + self.clip_high)) | ((batch.advantages < 0) & (ratio < 1 - self.clip_low))
        candidates = batch.trained() & (covariance > self.low) & (covariance < self.high) & ~clipped
        draw = uniform(batch.extras["token_keys"], self.seed)
        if self.statistics is not None:
            dropped = candidates & (draw < self.statistics.cutoff)
        else:
            count = torch.floor(batch.count().double() * self.fraction + 1e-9).clamp(min=1)
            dropped = candidates & (descending_rank(-draw, candidates) < count)
        return (~dropped).to(covariance.dtype)


def descending_rank(values: Tensor, among: Tensor) -> Tensor:
    """(n,) int64: 0 for the largest of `values` where `among` is True, 1 for the next; of equal ones the first; the others come last."""
    order = torch.argsort(torch.where(among, values, float("-inf")), descending=True, stable=True)
    order = order.index_select(0, torch.argsort((~among.index_select(0, order)).to(torch.uint8), stable=True))
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))


def masked_quantile(values: Tensor, among: Tensor, share: float) -> Tensor:
    """0-dim, torch.quantile(values[among], share) without a size that depends on data, and for any number of them; of none +inf."""
    infinite = values.new_full((1,), float("inf"))
    ordered = torch.cat([torch.where(among, values, float("inf")).sort().values, infinite])
    place = share * (among.sum().double() - 1).clamp(min=0)
    below = place.floor().to(torch.int64)
    ends = torch.stack([below, (below + 1).clamp(max=ordered.shape[0] - 1)])
    low, high = ordered.index_select(0, ends).unbind()  # plain indexing would read the place back to the host
    part = (place - below).to(values.dtype)
    return torch.where(part > 0, low + part * (high - low), low)
