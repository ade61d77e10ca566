"""Whitening: numbers of a whole batch brought to mean 0 and variance 1, over tokens or rows, over ranks if asked.

Frameworks differ in the variance (over n - 1 or n) and in where the small number goes that keeps a division by 0 away; each
choice is a field, each framework's set a constant.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..collectives import reduce_in_place
from . import arguments
from .layout import token_values


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """How a batch's deviation is taken.

    ddof: 1 divides the sum of squares by n - 1, 0 by n.
    eps, eps_in: "variance": sqrt(variance + eps); "deviation": sqrt(variance) + eps; "floor": sqrt(max(variance, eps)).
    """

    ddof: int = 1
    eps: float = 1e-8
    eps_in: str = "variance"

    def __post_init__(self) -> None:
        for name, choices in {"ddof": (0, 1), "eps_in": ("variance", "deviation", "floor")}.items():
            if getattr(self, name) not in choices or (name == "ddof" and checks.whole(self.ddof) is None):
                checks.fail(
                    "Whitening", name, " or ".join(map(repr, choices)), getattr(self, name), "see VERL_WHITENING and its neighbours"
                )
        checks.number("Whitening", "eps", self.eps, above=0.0, fix="1e-8 is usual")

    def deviation(self, variance: Tensor) -> Tensor:
        """What values are divided by."""
        if self.eps_in == "variance":
            return (variance + self.eps).sqrt()
        return variance.clamp(min=self.eps).sqrt() if self.eps_in == "floor" else variance.sqrt() + self.eps


# verl's masked_whiten; also ROLL, slime, SPO and TRL's PPO.
VERL_WHITENING = Whitening()

# OpenRLHF, and NeMo-RL's Reinforce++: variance over n, at least 1e-8.
OPENRLHF_WHITENING = Whitening(ddof=0, eps_in="floor")

# AReaL: eps 1e-5 beside the deviation.
AREAL_WHITENING = Whitening(eps=1e-5, eps_in="deviation")


class BatchMoments(NamedTuple):
    """Statistics of all counted numbers; 0-dim."""

    count: Tensor  # float64
    mean: Tensor  # float64; exactly the common number where all are equal
    variance: Tensor  # float64; exactly 0 where all are equal


def whiten(
    values: Tensor,  # (B, T), (N,) or (S,) float
    mask: Tensor,  # the same shape, bool
    *,
    keep_mean: bool = False,
    statistics: Whitening = VERL_WHITENING,
    counted: Tensor | None = None,  # the same shape, bool: what enters mean and variance; None: all of mask
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # the same shape, float32, float64 for float64 values; 0 where masked
    """Numbers minus their mean, over their standard deviation.

    The same, slowly: `(values - values[mask].mean()) * (values[mask].var() + 1e-8).rsqrt()`; with `keep_mean` the mean is added
    back afterwards (rewards are whitened so).

    `counted` leaves tokens out of the statistics that are whitened all the same (SPO: the confident ones); where it selects
    nothing all of `mask` is counted. Numbers that are all equal give 0 (with keep_mean themselves), exactly. With a process_group
    mean and variance are those of all its ranks' numbers; None is this process alone.
    Statistics in float64, two passes, result rounded once. Carries no gradient. Where values are checked raises for numbers that are
    not finite.
    Source: REINFORCE++ (arXiv 2501.03262), Eq. 6; PPO implementations since baselines.
    """
    function = "whiten"
    checks.mask(function, mask)
    numbers = token_values(function, "values", values, mask)
    check_whitening(function, statistics)
    entering = mask
    if counted is not None:
        checks.mask(function, counted, tuple(mask.shape), mask.device, name="counted")
        chosen = counted & mask
        entering = torch.where(_anywhere(chosen, process_group), chosen, mask)
    batch = batch_moments(numbers, entering, ddof=statistics.ddof, process_group=process_group)
    whitened = (numbers - batch.mean) / statistics.deviation(batch.variance)
    if keep_mean:
        whitened = whitened + batch.mean
    return torch.where(mask, whitened, 0.0).to(arguments.result_dtype(values))


def rescale(
    values: Tensor,  # (B, T), (N,) or (S,) float
    mask: Tensor,  # the same shape, bool
    *,
    statistics: Whitening = VERL_WHITENING,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # the same shape, float32, float64 for float64 values; 0 where masked
    """Numbers over their standard deviation around their mean, which is not subtracted.

    The same, slowly: `values * (values[mask].var() + 1e-8).rsqrt()`. Ranks, precision and errors as in `whiten`.
    Source: SPO's code (arXiv 2505.23564), which calls it graying; OpenRLHF's REINFORCE with scaling only.
    """
    function = "rescale"
    checks.mask(function, mask)
    numbers = token_values(function, "values", values, mask)
    check_whitening(function, statistics)
    batch = batch_moments(numbers, mask, ddof=statistics.ddof, process_group=process_group)
    scaled = numbers / statistics.deviation(batch.variance)
    return torch.where(mask, scaled, 0.0).to(arguments.result_dtype(values))


def batch_moments(values: Tensor, counted: Tensor, *, ddof: int, process_group=None) -> BatchMoments:
    """Count, mean and variance of the counted numbers, over the ranks of a process group."""
    if values.numel() == 0:  # a rank without rows takes part in the reductions all the same
        values, counted = values.new_zeros(1), counted.new_zeros(1)
    infinity = float("inf")
    totals = torch.stack([counted.sum().to(torch.float64), torch.where(counted, values, 0.0).sum()])
    bounds = torch.stack([torch.where(counted, values, -infinity).max(), torch.where(counted, -values, -infinity).max()])
    reduce_in_place(totals, process_group)
    reduce_in_place(bounds, process_group, largest=True)
    count, high, low = totals[0], bounds[0], -bounds[1]
    flat = high == low
    mean = torch.where(flat, high, totals[1] / count.clamp(min=1.0))
    squares = reduce_in_place(torch.where(counted, (values - mean).square(), 0.0).sum(), process_group)
    return BatchMoments(count, mean, torch.where(flat, 0.0, squares / (count - ddof).clamp(min=1.0)))


def check_whitening(function: str, statistics: Whitening, name: str = "statistics") -> None:
    """Check the option that every whitening function takes; `name` is what the caller calls it."""
    if not isinstance(statistics, Whitening):
        fix = "pass VERL_WHITENING, OPENRLHF_WHITENING or a Whitening of your own"
        checks.fail(function, name, "a Whitening", statistics, fix, error=TypeError)


def _anywhere(chosen: Tensor, process_group) -> Tensor:
    return reduce_in_place(chosen.sum(), process_group) > 0
