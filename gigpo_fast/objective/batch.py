"""What the formulas work on: tensors with one number per token, a V-th of the data.

Either all tokens are trained (packed, `mask` None) or untrained ones have been replaced by harmless values
(log-probs 0, advantage 0) and are removed from the sums by `mask`. So no formula ever needs to think of masks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import segment_sum


class Sequences(NamedTuple):
    """Which sequence each token belongs to, and how many trained tokens each sequence has."""

    ids: Tensor  # (n,) int64 in 0 .. len(lengths) - 1
    lengths: Tensor  # (bound,) float, trained tokens of each sequence; 0 for numbers that are not in use

    def sums(self, values: Tensor) -> Tensor:
        """(bound,) sum of `values` (n,) over each sequence, deterministic on every device."""
        return segment_sum(values, self.ids, self.lengths.shape[0])

    def means(self, values: Tensor) -> Tensor:
        """(n,) for each token the mean of `values` over its sequence."""
        return (self.sums(values) / self.lengths.clamp(min=1)).index_select(0, self.ids)


class TokenBatch(NamedTuple):
    """The inputs of an objective, one entry a token."""

    log_probs: Tensor  # (n,)
    entropy: Tensor | None  # (n,) or None where nothing reads it
    advantages: Tensor  # (n,)
    old_log_probs: Tensor | None  # (n,) or None: on-policy, ratio exactly 1
    ref_log_probs: Tensor | None  # (n,)
    token_weights: Tensor  # (n,) the aggregation's weight of each token, divided by the denominator
    sequences: Sequences | None
    extras: dict[str, Tensor]  # (n,) each
    mask: Tensor | None  # (n,) bool, or None if every token is trained

    def log_ratio(self) -> Tensor:
        """(n,) log of pi / pi_old. On-policy the value is 0 and the gradient still flows."""
        old = self.log_probs.detach() if self.old_log_probs is None else self.old_log_probs
        return self.log_probs - old

    def total(self, values: Tensor) -> Tensor:
        """Sum over the trained tokens; what an untrained token holds cannot matter."""
        return (values if self.mask is None else torch.where(self.mask, values, 0)).sum()

    def take(self, rows: Tensor | slice) -> "TokenBatch":
        """The batch of some tokens (packed). Sequence lengths stay those of whole sequences."""
        pick = lambda value: None if value is None else value[rows]  # noqa: E731
        sequences = None if self.sequences is None else Sequences(self.sequences.ids[rows], self.sequences.lengths)
        return TokenBatch(
            pick(self.log_probs),
            pick(self.entropy),
            self.advantages[rows],
            pick(self.old_log_probs),
            pick(self.ref_log_probs),
            self.token_weights[rows],
            sequences,
            {name: value[rows] for name, value in self.extras.items()},
            pick(self.mask),
        )
