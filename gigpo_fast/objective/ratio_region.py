"""Weights by the importance ratio without a gradient through it: regions outside of which a token is dropped, and the ratio itself."""

import dataclasses

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import declare
from .levels import Level, TokenLevel
from .weighting import Weighting


class _OfRatio(Weighting):
    level: Level
    log_ratio_clip: float | None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.level, Level):
            raise TypeError(f"{name}: level must be a Level block such as TokenLevel(), got {self.level!r}; see gigpo_fast.objective")
        declare(self, (self.level,), known_on_policy=True, zero_at_zero_advantage=True)

    def _ratio(self, batch: TokenBatch) -> Tensor:
        log_ratio = self.level.pool(batch, batch.log_ratio().detach())
        return torch.exp(log_ratio if self.log_ratio_clip is None else log_ratio.clamp(-self.log_ratio_clip, self.log_ratio_clip))


@dataclasses.dataclass(frozen=True)
class RatioRegion(_OfRatio):
    """1 where the ratio pi / pi_old lies in [1 - low, 1 + high], else 0: the clip of REC (arXiv 2509.24203) as a mask.

    `one_sided` drops only what PPO's clip would leave without a gradient: good actions above, bad ones below. `outer_low` and `outer_high`
    keep besides, far outside, what moves back: good actions with a ratio <= 1 - outer_low, bad ones with one >= 1 + outer_high (REC-Ring).
    The ratio is that of the token, or pooled over a level: exp of the mean or the sum of its log-ratios.
    """

    low: float = number(0.2, low=0, high=1)
    high: float = number(0.2, low=0)
    one_sided: bool = False
    outer_low: float | None = number(None, low=0, high=1)
    outer_high: float | None = number(None, low=0)
    level: Level = TokenLevel()
    log_ratio_clip: float | None = number(20.0, above=0)

    def factor(self, batch: TokenBatch) -> Tensor:
        ratio, advantages = self._ratio(batch), batch.advantages
        below, above = ratio < 1 - self.low, ratio > 1 + self.high
        if self.one_sided:
            below, above = below & (advantages < 0), above & (advantages > 0)
        kept = ~(below | above)
        if self.outer_low is not None:
            kept = kept | ((advantages >= 0) & (ratio <= 1 - self.outer_low))
        if self.outer_high is not None:
            kept = kept | ((advantages <= 0) & (ratio >= 1 + self.outer_high))
        return kept.to(ratio.dtype)


@dataclasses.dataclass(frozen=True)
class RatioWeight(_OfRatio):
    """The ratio pi / pi_old itself, as a constant: importance sampling, of the token or pooled over a level; at most `maximum`."""

    maximum: float | None = number(None, above=0)
    level: Level = TokenLevel()
    log_ratio_clip: float | None = number(20.0, above=0)

    def factor(self, batch: TokenBatch) -> Tensor:
        ratio = self._ratio(batch)
        return ratio if self.maximum is None else ratio.clamp(max=self.maximum)
