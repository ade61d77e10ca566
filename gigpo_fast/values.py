"""Checks of the values of trained tokens. Call them where `checks.values_wanted` says that reading costs no wait.

Each first asks one number of the whole tensor, untrained tokens included, that settles it for good data; only then it looks closer.
"""

import math

import torch
from torch import Tensor

from . import checks

_FIX = "mask such tokens out, or find where they come from"
_ROUNDING = 0.01  # a log-prob above 0 by less is the rounding of a certain token


def all_finite(values: Tensor) -> bool:
    """True if every value is finite; False where that is to be looked at one by one, as where only their sum is infinite."""
    return not values.is_floating_point() or math.isfinite(values.detach().sum().item())


def check_finite(function: str, name: str, values: Tensor, mask: Tensor, *, where: str = "at trained tokens") -> None:
    """Refuse NaN and infinity where the mask is True."""
    if all_finite(values):
        return
    wrong = mask & ~torch.isfinite(values)
    if bool(wrong.any()):
        _fail_first(function, name, values, wrong, f"finite {where}")


def check_not_nan(function: str, name: str, values: Tensor, mask: Tensor) -> None:
    """`check_finite` where infinity means something."""
    if all_finite(values):
        return
    wrong = mask & torch.isnan(values)
    if bool(wrong.any()):
        _fail_first(function, name, values, wrong, "free of NaN at trained tokens")


def check_log_probs(function: str, name: str, values: Tensor, mask: Tensor, *, infinite: bool, densities: bool) -> None:
    """Refuse NaN, infinity unless it means something, and probabilities or negative log-likelihoods in the place of log-probs.

    `densities`: the numbers may be of something continuous (denoising steps), whose log-densities exceed 0.
    """
    if values.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(values.detach()))  # NaN if one of them is
    if (infinite or low > -math.inf) and high <= _ROUNDING:
        return
    (check_not_nan if infinite else check_finite)(function, name, values, mask)
    low, high = value_range(values, mask)
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
