"""The importance ratio pi / pi_old: per token, segment or sequence, or none."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Block, Scope

Bound = float | tuple[float, float] | None


class Ratio(Block):
    """A block that says which ratio a token has, as its logarithm before the clamp."""

    log_ratio_clip: Bound
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def unclamped(self, batch: TokenBatch) -> Tensor:
        """(n,) log-ratio of each token, differentiable in log_probs."""
        raise NotImplementedError

    def bounds(self) -> tuple[float, float]:
        """The interval to which the log-ratio is clamped before exp; outside it is constant and has zero gradient."""
        if self.log_ratio_clip is None:
            return float("-inf"), float("inf")
        if isinstance(self.log_ratio_clip, tuple):
            return self.log_ratio_clip
        return -self.log_ratio_clip, self.log_ratio_clip

    def log_ratio(self, batch: TokenBatch) -> Tensor:
        """(n,) log-ratio after the clamp. NaN stays NaN."""
        return torch.clamp(self.unclamped(batch), *self.bounds())

    def token_log_ratio(self, batch: TokenBatch) -> Tensor:
        """(n,) what `approx_kl` reports the negative of."""
        return batch.log_ratio()

    def __post_init__(self) -> None:
        pair = not isinstance(self.log_ratio_clip, tuple) or len(self.log_ratio_clip) == 2
        low, high = self.bounds() if pair else (0.0, 0.0)
        if not low <= 0 <= high or low == high:
            raise ValueError(
                f"{type(self).__name__}: log_ratio_clip must be a positive number, a (low, high) pair around 0 or None, "
                f"got {self.log_ratio_clip!r}; 20.0 is the usual value"
            )


@dataclasses.dataclass(frozen=True)
class TokenRatio(Ratio):
    """rho_t = exp(clamp(log_prob_t - old_log_prob_t)): PPO (arXiv 1707.06347) and GRPO (arXiv 2402.03300)."""

    log_ratio_clip: Bound = 20.0

    def unclamped(self, batch: TokenBatch) -> Tensor:
        return batch.log_ratio()

    def token_log_ratio(self, batch: TokenBatch) -> Tensor:
        return self.log_ratio(batch)


@dataclasses.dataclass(frozen=True)
class SequenceRatio(Ratio):
    """rho = exp(mean over the sequence of log_prob - old_log_prob): GSPO (arXiv 2507.18071).

    The gradient goes through the mean (equation 10 of the paper; TRL, slime, NeMo-RL); with `stop_gradient_mean` it is
    exp(sg(mean) + log_prob_t - sg(log_prob_t)) (the token variant, equation 14; verl).
    """

    log_ratio_clip: Bound = 20.0
    stop_gradient_mean: bool = False
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True

    def unclamped(self, batch: TokenBatch) -> Tensor:
        mean = batch.sequences.means(batch.log_ratio())
        if not self.stop_gradient_mean:
            return mean
        return mean.detach() + (batch.log_probs - batch.log_probs.detach())


@dataclasses.dataclass(frozen=True)
class NoRatio(Ratio):
    """rho = 1 whatever the old policy said: plain policy gradient."""

    log_ratio_clip: Bound = None

    def unclamped(self, batch: TokenBatch) -> Tensor:
        return batch.log_probs - batch.log_probs.detach()


@dataclasses.dataclass(frozen=True)
class SequenceProductRatio(Ratio):
    """rho = exp(sum over the sequence of log_prob - old_log_prob): the sequence's own ratio (RLOO, arXiv 2402.14740).

    `token_clip` clamps each token's log-ratio first, `log_ratio_clip` their sum.
    """

    log_ratio_clip: Bound = 20.0
    token_clip: float | None = number(None, above=0)
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True

    def unclamped(self, batch: TokenBatch) -> Tensor:
        log_ratio = batch.log_ratio()
        return batch.sequence_sums(log_ratio if self.token_clip is None else log_ratio.clamp(-self.token_clip, self.token_clip))


@dataclasses.dataclass(frozen=True)
class SegmentRatio(Ratio):
    """rho = exp(mean over the token's segment of log_prob - old_log_prob): one ratio a turn (ROLL's "segment").

    extras["segment_ids"] (int64) names the segment; a segment lies within one sequence. The gradient goes through the mean.
    """

    log_ratio_clip: Bound = 20.0
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("segment_ids",)

    def unclamped(self, batch: TokenBatch) -> Tensor:
        labels = batch.extras["segment_ids"]
        lengths = batch.label_sums(torch.ones_like(batch.advantages), labels).clamp(min=1)
        return batch.label_sums(batch.log_ratio(), labels) / lengths


@dataclasses.dataclass(frozen=True)
class RolloutRatio(Ratio):
    """rho_t = exp(clamp(log_prob_t - rollout_log_prob_t)): the policy against the engine that sampled, no old policy between (prime-rl).

    Reads extras["rollout_log_probs"].
    """

    log_ratio_clip: Bound = 20.0
    reads: ClassVar[tuple[str, ...]] = ("rollout_log_probs",)
    known_on_policy: ClassVar[bool] = False

    def unclamped(self, batch: TokenBatch) -> Tensor:
        return batch.log_probs - batch.extras["rollout_log_probs"]

    def token_log_ratio(self, batch: TokenBatch) -> Tensor:
        return self.log_ratio(batch)
