"""Checks of the values of trained tokens, one pass each. Call them where `checks.values_wanted` says that reading costs no wait."""

import math

import torch
from torch import Tensor

from . import checks

_FIX = "mask such tokens out, or find where they come from"
_ROUNDING = 0.01  # a log-prob above 0 by less is the rounding of a certain token


def all_finite(values: Tensor) -> bool:
    """True if every value is finite; False where that is to be looked at one by one, as where only their sum is infinite."""
    return math.isfinite(values.detach().sum().item())


def check_finite(function: str, name: str, values: Tensor, mask: Tensor, *, where: str = "at trained tokens") -> tuple[float, float]:
    """Refuse NaN and infinity where the mask is True; the range of the values and of 0, which stands at the others."""
    low, high = value_range(values, mask)
    if not (math.isfinite(low) and math.isfinite(high)):
        _fail_first(function, name, values, mask & ~torch.isfinite(values), f"finite {where}")
    return low, high


def check_not_nan(function: str, name: str, values: Tensor, mask: Tensor) -> tuple[float, float]:
    """`check_finite` where infinity means something."""
    low, high = value_range(values, mask)
    if math.isnan(low) or math.isnan(high):
        _fail_first(function, name, values, mask & torch.isnan(values), "free of NaN at trained tokens")
    return low, high


def check_log_probs(function: str, name: str, values: Tensor, mask: Tensor, *, infinite: bool, densities: bool) -> None:
    """Refuse NaN, infinity unless it means something, and probabilities or negative log-likelihoods in the place of log-probs.

    `densities`: the numbers may be of something continuous (denoising steps), whose log-densities exceed 0.
    """
    low, high = (check_not_nan if infinite else check_finite)(function, name, values, mask)
    if low < 0 or high <= _ROUNDING or (densities and high > 1):
        return
    got = f"numbers from {float(values.detach()[mask].min()):.3g} to {high:.3g} at trained tokens"
    if high > 1:
        checks.fail(function, name, "log-probs (nats, <= 0)", got, "negate them: they look like negative log-likelihoods")
    fix = "take their log: they look like probabilities"
    if densities:
        fix += "; log-densities that all lie there pass under gigpo_fast.validation('metadata')"
    checks.fail(function, name, "log-probs (nats, <= 0)", got, fix)


def value_range(values: Tensor, mask: Tensor) -> tuple[float, float]:
    """(smallest, largest) of the values at trained tokens and of 0; NaN both if one of them is."""
    if values.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(torch.where(mask, values.detach(), 0))
    return low.item(), high.item()


def _fail_first(function: str, name: str, values: Tensor, wrong: Tensor, expected: str) -> None:
    first = wrong.nonzero()[0].tolist()
    checks.fail(function, name, expected, f"{float(values[tuple(first)])} at {first} ({int(wrong.sum())} in all)", _FIX)
