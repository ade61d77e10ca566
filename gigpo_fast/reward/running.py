"""Rewards scaled by what has been seen in training so far: PPO-max's reward scaling, with its state in the caller's hands."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..collectives import reduce_in_place
from . import arguments


class RunningMoments(NamedTuple):
    """Count, mean and variance (over n) of all numbers so far; start with RunningMoments.empty()."""

    count: Tensor  # 0-dim float64
    mean: Tensor  # 0-dim float64
    variance: Tensor  # 0-dim float64

    @staticmethod
    def empty(device: torch.device | str | None = None) -> "RunningMoments":
        """Nothing seen yet; on the CPU unless `device` names another."""
        device = "cpu" if device is None else device
        return RunningMoments(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)))


def running_scale(
    rewards: Tensor,  # (S,) float, int or bool
    state: RunningMoments,
    *,
    center: bool = False,
    clip: float | None = None,
    valid: Tensor | None = None,  # (S,) bool
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> tuple[Tensor, RunningMoments]:  # (S,) float32, float64 for float64 rewards, 0 where not valid; the state for the next batch
    """Rewards over the standard deviation (n - 1) of all rewards so far, this batch included.

    The same, slowly: `seen = torch.cat([seen, rewards]); rewards / seen.std()`, and `(rewards - seen.mean()) / seen.std()` with center.

    clip limits the result to +-clip. A deviation of 0, or of a single reward, divides by 1. The batch spans the ranks of process_group.
    Moments are merged in float64, so that batches of any size give the same. Carries no gradient.
    Source: PPO-max (arXiv 2307.04964), reward scaling, normalisation and clip; its released script scales only.
    """
    function = "running_scale"
    if clip is not None:
        clip = checks.number(function, "clip", clip, above=0.0, fix="10.0 is usual, None is no clip")
    if not isinstance(state, RunningMoments):
        fix = "start with RunningMoments.empty() and pass on what the last call returned"
        checks.fail(function, "state", "RunningMoments", state, fix, error=TypeError)
    counted, values = arguments.rows(function, valid, rewards=rewards)
    totals = reduce_in_place(torch.stack([counted.sum().to(torch.float64), values.sum()]), process_group)
    count, mean = totals[0], totals[1] / totals[0].clamp(min=1.0)
    squares = reduce_in_place(torch.where(counted, (values - mean).square(), 0.0).sum(), process_group)

    whole = state.count + count
    apart = mean - state.mean
    new_mean = state.mean + torch.where(whole > 0, apart * count / whole.clamp(min=1.0), 0.0)
    merged = state.variance * state.count + squares + apart.square() * state.count * count / whole.clamp(min=1.0)
    after = RunningMoments(whole, new_mean, merged / whole.clamp(min=1.0))
    deviation = (merged / (whole - 1.0).clamp(min=1.0)).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1.0)
    scaled = (values - after.mean if center else values) / deviation
    if clip is not None:
        scaled = scaled.clamp(-clip, clip)
    return arguments.result(scaled, counted, rewards), after
