"""Rollout correction: what the engine that sampled said of a token, against what the trainer says of it.

Both are log-probs of one policy, so their ratio is 1 but for numerics and staleness. It corrects as an importance weight
(truncated, or kept within a band), or it rejects: tokens or sequences whose statistic leaves a band weigh 0.
"""

import dataclasses

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import declare
from .divergence import Estimator
from .levels import Level, TokenLevel
from .weighting import Weighting


class _Rollout(Weighting):
    """What both have: a level, bounds, and whether the current policy or the old one is compared with the rollout's."""

    def _check(self, name: str, parts: tuple) -> None:
        if not isinstance(self.level, Level):
            raise TypeError(f"{name}: level must be a Level block such as TokenLevel(), got {self.level!r}; see gigpo_fast.objective")
        if self.low is None and self.high is None:
            raise ValueError(f"{name}: low or high must be given, got None for both; a usual upper bound is 2.0")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{name}: low must be <= high, got low={self.low}, high={self.high}")
        reads = tuple(dict.fromkeys(("rollout_log_probs", *self.level.reads)))
        declare(self, parts, reads=reads, known_on_policy=False, zero_at_zero_advantage=True)

    def _policy(self, batch: TokenBatch) -> Tensor:
        return batch.log_probs.detach() if self.current else batch.old()

    def _inside(self, value: Tensor) -> Tensor:
        """Bool (n,), within the band; NaN is not."""
        if self.low is None:
            return value <= self.high
        return value >= self.low if self.high is None else (value >= self.low) & (value <= self.high)


@dataclasses.dataclass(frozen=True)
class RolloutCorrection(_Rollout):
    """exp(level of log pi_old - log pi_rollout), the importance weight of the sampling engine; reads extras["rollout_log_probs"].

    `truncate` clamps it into [low, high]: truncated importance sampling (TIS). Otherwise it is 0 outside and itself inside:
    IcePop at the token level, masked sequences at SequenceSum() or SequenceMean(). The log is clamped to +-log_ratio_clip before exp.
    With `current` the weight is of the current policy, as a constant (no old policy between). A NaN from the engine is ratio 1.
    """

    level: Level = TokenLevel()
    low: float | None = number(None, low=0)
    high: float | None = number(2.0, low=0)
    truncate: bool = True
    current: bool = False
    log_ratio_clip: float | None = number(20.0, above=0)

    def __post_init__(self) -> None:
        self._check("RolloutCorrection", (self.level,))

    def factor(self, batch: TokenBatch) -> Tensor:
        gap = self._policy(batch) - batch.extras["rollout_log_probs"]
        log_weight = self.level.pool(batch, torch.where(gap.isnan(), 0, gap))
        if self.log_ratio_clip is not None:
            log_weight = log_weight.clamp(-self.log_ratio_clip, self.log_ratio_clip)
        weight = torch.exp(log_weight)
        return weight.clamp(self.low, self.high) if self.truncate else torch.where(self._inside(weight), weight, 0)


@dataclasses.dataclass(frozen=True)
class Rejection(_Rollout):
    """1 where the level of a statistic between pi_old and pi_rollout lies in [low, high], else 0; reads extras["rollout_log_probs"].

    The statistic is that of `estimator` (K1, K2, K3, BinaryKL, TotalVariation ..., of log pi_old and log pi_rollout), or for None the
    ratio, whose logarithms are pooled. With `current` the current policy takes the old one's place.
    """

    estimator: Estimator | None = None
    level: Level = TokenLevel()
    low: float | None = None
    high: float | None = None
    current: bool = False

    def __post_init__(self) -> None:
        if self.estimator is not None and not isinstance(self.estimator, Estimator):
            raise TypeError(f"Rejection: estimator must be a divergence estimator such as K3() or None, got {self.estimator!r}")
        self._check("Rejection", (self.level,))

    def factor(self, batch: TokenBatch) -> Tensor:
        policy, rollout = self._policy(batch), batch.extras["rollout_log_probs"]
        if self.estimator is None:
            value = torch.exp(self.level.pool(batch, policy - rollout))
        else:
            value = self.level.pool(batch, self.estimator.value(policy, rollout))
        return self._inside(value).to(value.dtype)
