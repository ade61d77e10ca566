"""Metrics: one packed vector with static names, so that micro-batches and ranks merge exactly and one copy reads all.

Every entry is a sum, a sum with its count, or a maximum. Maxima start at 0: all of them are of non-negative quantities.
"""

import torch
from torch import Tensor

SUMS = ("loss_sum", "n_active", "nonfinite_tokens")
MEANS = (
    "clip_fraction_low",
    "clip_fraction_high",
    "dual_clip_fraction",
    "approx_kl",
    "ref_kl",
    "entropy",
    "ratio_clamped_fraction",
    "skipped_fraction",
    "two_pass_fraction",
)
MAXIMA = ("denominator", "ratio_max")
NAMES = (*SUMS, *MEANS, *MAXIMA)

# The vector: sums, then the sums of the means, then their counts, then the maxima.
_MEANS = len(SUMS)
_COUNTS = _MEANS + len(MEANS)
_MAXIMA = _COUNTS + len(MEANS)
SIZE = _MAXIMA + len(MAXIMA)


def pack(sums: dict[str, Tensor], means: dict[str, tuple[Tensor, Tensor]], maxima: dict[str, Tensor], like: Tensor) -> Tensor:
    """(SIZE,) float32 from 0-dim tensors; a name that is absent counts nothing."""
    zero = like.new_zeros((), dtype=torch.float32)
    nothing = (zero, zero)
    entries = [sums.get(name, zero) for name in SUMS]
    entries += [means.get(name, nothing)[0] for name in MEANS]
    entries += [means.get(name, nothing)[1] for name in MEANS]
    entries += [maxima.get(name, zero) for name in MAXIMA]
    return torch.stack([entry.detach().to(torch.float32) for entry in entries])


def merge(vectors: list[Tensor]) -> Tensor:
    """(SIZE,) of all parts together: sums and counts add up, maxima take the largest."""
    stacked = torch.stack(vectors)
    return torch.cat([stacked[:, :_MAXIMA].sum(0), stacked[:, _MAXIMA:].amax(0)])


def as_floats(vector: Tensor) -> dict[str, float]:
    """Values by name; a mean over nothing is 0. Waits for the device once."""
    values = vector.tolist()
    result = dict(zip(SUMS, values))
    for index, name in enumerate(MEANS):
        count = values[_COUNTS + index]
        result[name] = values[_MEANS + index] / count if count else 0.0
    result |= dict(zip(MAXIMA, values[_MAXIMA:]))
    return result
