"""Metrics: one packed vector with static names, so that micro-batches and ranks merge exactly and one copy reads all.

Every entry is a sum, a sum with its count, or a maximum. Maxima start at 0: all of them are of non-negative quantities.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """The names of a vector: sums, then the sums of the means, then their counts, then the maxima."""

    sums: tuple[str, ...]
    means: tuple[str, ...]
    maxima: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric, in the order in which they are read."""
        return (*self.sums, *self.means, *self.maxima)

    @property
    def size(self) -> int:
        """How long the vector is."""
        return self._maxima + len(self.maxima)

    @property
    def _maxima(self) -> int:
        return len(self.sums) + 2 * len(self.means)

    def pack(self, sums: dict[str, Tensor], means: dict[str, tuple[Tensor, Tensor]], maxima: dict[str, Tensor], like: Tensor) -> Tensor:
        """(size,) float32 from 0-dim tensors; a mean that is absent counts nothing, and is not reported."""
        zero = like.new_zeros((), dtype=torch.float32)
        nothing = (zero, zero)
        entries = [sums.get(name, zero) for name in self.sums]
        entries += [means.get(name, nothing)[0] for name in self.means]
        entries += [means.get(name, nothing)[1] for name in self.means]
        entries += [maxima.get(name, zero) for name in self.maxima]
        return torch.stack([entry.detach().to(torch.float32) for entry in entries])

    def merge(self, vectors: list[Tensor]) -> Tensor:
        """(size,) of all parts together: sums and counts add up, maxima take the largest."""
        stacked = torch.stack(vectors)
        return torch.cat([stacked[:, : self._maxima].sum(0), stacked[:, self._maxima :].amax(0)])

    def as_floats(self, vector: Tensor) -> dict[str, float]:
        """Values by name, without the means over nothing: nobody measured those. Waits for the device once."""
        values = vector.tolist()
        first, counts = len(self.sums), len(self.sums) + len(self.means)
        result = dict(zip(self.sums, values))
        for index, name in enumerate(self.means):
            if count := values[counts + index]:
                result[name] = values[first + index] / count
        return result | dict(zip(self.maxima, values[self._maxima :]))


POLICY = Layout(
    sums=("loss_sum", "n_active", "nonfinite_tokens"),
    means=(
        "clip_fraction_low",
        "clip_fraction_high",
        "dual_clip_fraction",
        "approx_kl",
        "ref_kl",
        "entropy",
        "ratio_clamped_fraction",
        "skipped_fraction",
        "two_pass_fraction",
    ),
    maxima=("denominator", "ratio_max"),
)
NAMES, SIZE = POLICY.names, POLICY.size
pack, merge, as_floats = POLICY.pack, POLICY.merge, POLICY.as_floats
