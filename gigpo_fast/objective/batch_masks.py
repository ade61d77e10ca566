"""Masks of sequences and whole batches that have drifted off-policy."""

import dataclasses

import torch
from torch import Tensor

from ..segments import running_sums
from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class OffPolicySequenceMask(Weighting):
    """0 for bad actions (A < 0) of sequences with mean(anchor's log_prob - log_prob) > threshold, else 1 (DeepSeek-V3.2, arXiv 2512.02556).

    The anchor is the sampling engine (extras["rollout_log_probs"]; TRL), or with `old` the old policy (slime). A NaN mean drops all
    bad actions of its sequence.
    """

    threshold: float
    old: bool = False

    def __post_init__(self) -> None:
        for name, value in {"scope": Scope.SEQUENCE, "needs_sequences": True, "reads": () if self.old else ("rollout_log_probs",)}.items():
            object.__setattr__(self, name, value)

    def factor(self, batch: TokenBatch) -> Tensor:
        anchor = batch.old() if self.old else batch.extras["rollout_log_probs"]
        drift = batch.sequence_means(anchor - batch.log_probs.detach())
        return ((batch.advantages >= 0) | (drift <= self.threshold)).to(drift.dtype)


@dataclasses.dataclass(frozen=True)
class SecondMoment(Weighting):
    """0 for the tokens of largest squared log-ratio, until the mean of the rest is at most `threshold`, else 1: M2PO (arXiv 2510.01161).

    The log-ratio is log pi_old - log pi_rollout (reads extras["rollout_log_probs"]), or with `old` log pi - log pi_old. `cutoff`, the
    smallest squared log-ratio that is dropped, may be given from outside; otherwise it is found among this call's tokens. Where the
    smallest alone exceeds the threshold nothing is left, as the paper's constraint says; AReaL's code keeps that one token.
    """

    threshold: float = number(0.04, above=0)
    old: bool = False
    cutoff: float | None = number(None, low=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope.BATCH if self.cutoff is None else Scope.TOKEN)
        object.__setattr__(self, "reads", () if self.old else ("rollout_log_probs",))

    def factor(self, batch: TokenBatch) -> Tensor:
        gap = batch.log_ratio().detach() if self.old else batch.old() - batch.extras["rollout_log_probs"]
        squares = gap.square()
        if self.cutoff is not None:
            return (squares < self.cutoff).to(gap.dtype)
        trained = batch.trained()
        order = torch.argsort(torch.where(trained, squares, float("inf")), stable=True)
        ordered = squares.index_select(0, order)  # untrained tokens come last: they reach no mean of a trained one
        means = running_sums(ordered) / torch.arange(1, order.shape[0] + 1, device=order.device, dtype=gap.dtype)
        kept = torch.empty_like(trained).scatter_(0, order, means <= self.threshold)  # means of a growing sequence grow
        return kept.to(gap.dtype)


@dataclasses.dataclass(frozen=True)
class RatioGuard(Weighting):
    """0 for the whole call if its mean ratio exceeds `threshold`, else 1: a batch that drifted is skipped (SPO, arXiv 2505.23564).

    `mean` gives the mean ratio from outside. Log-ratios are clamped to +-log_ratio_clip before exp.
    """

    threshold: float = number(10.0, above=0)
    log_ratio_clip: float = number(20.0, above=0)
    mean: float | None = number(None, low=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope.BATCH if self.mean is None else Scope.TOKEN)

    def factor(self, batch: TokenBatch) -> Tensor:
        ones = torch.ones_like(batch.advantages)
        if self.mean is not None:
            return ones * float(self.mean <= self.threshold)
        ratio = torch.exp(batch.log_ratio().detach().clamp(-self.log_ratio_clip, self.log_ratio_clip))
        return ones * (batch.mean(ratio) <= self.threshold)
