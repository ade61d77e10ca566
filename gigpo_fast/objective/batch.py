"""What the formulas work on: tensors with one number per token, a V-th of the data.

Either all tokens are trained (packed, `mask` None) or untrained ones have been replaced by harmless values
(log-probs 0, advantage 0) and are removed from the sums by `mask`. So no formula ever needs to think of masks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..collectives import largest_over_ranks, sum_over_ranks
from ..segments import dense_labels, segment_max, segment_sum


class Sequences(NamedTuple):
    """Which sequence each token belongs to, and how many trained tokens each sequence has."""

    ids: Tensor  # (n,) int64 in 0 .. len(lengths) - 1
    lengths: Tensor  # (bound,) float, trained tokens of each whole sequence; 0 for numbers that are not in use
    group_name: str = ""  # the ranks over which these sequences are cut; "": every sequence is here as far as it matters
    fault: Tensor | None = None  # 0-dim bool: labels that a check of values would have refused, so that the loss is to be NaN

    def sums(self, values: Tensor) -> Tensor:
        """(bound,) sum of `values` (n,) over each sequence, deterministic on every device, over all ranks that have a part."""
        return sum_over_ranks(segment_sum(values, self.ids, self.lengths.shape[0]), self.group_name)

    def means(self, values: Tensor) -> Tensor:
        """(n,) for each token the mean of `values` over its sequence."""
        # Here and below: indexing by a tensor, whose gradient adds up in a fixed order; index_select's adds by float atomics on a GPU.
        return (self.sums(values) / self.lengths.clamp(min=1))[self.ids]


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

    def old(self) -> Tensor:
        """(n,) log-probs of the old policy; on-policy the policy's own, as constants."""
        return self.log_probs.detach() if self.old_log_probs is None else self.old_log_probs

    def trained(self) -> Tensor:
        """(n,) bool, which tokens are trained."""
        return torch.ones_like(self.log_probs, dtype=torch.bool) if self.mask is None else self.mask

    def count(self) -> Tensor:
        """0-dim, how many tokens are trained."""
        return self.total(torch.ones_like(self.advantages))

    def mean(self, values: Tensor) -> Tensor:
        """0-dim, the mean over trained tokens; of none at all 0."""
        return self.total(values) / self.count().clamp(min=1)

    def sequence_sums(self, values: Tensor) -> Tensor:
        """(n,) for each token the sum of `values` over the trained tokens of its sequence."""
        values = values if self.mask is None else torch.where(self.mask, values, 0)
        return self.sequences.sums(values)[self.sequences.ids]

    def sequence_means(self, values: Tensor) -> Tensor:
        """(n,) for each token the mean of `values` over the trained tokens of its sequence."""
        return self.sequence_sums(values) / self.sequence_lengths()

    def sequence_largest(self, values: Tensor) -> Tensor:
        """(n,) for each token the largest of `values` over the trained tokens of its sequence; -inf if there is none."""
        values = values if self.mask is None else torch.where(self.mask, values, float("-inf"))
        largest = values.new_full(self.sequences.lengths.shape, float("-inf"))
        largest = largest.scatter_reduce(0, self.sequences.ids, values, "amax")
        return largest_over_ranks(largest, self.sequences.group_name)[self.sequences.ids]

    def sequence_lengths(self) -> Tensor:
        """(n,) for each token how many trained tokens its sequence has; at least 1."""
        return self.sequences.lengths.clamp(min=1).to(self.advantages.dtype)[self.sequences.ids]

    def label_sums(self, values: Tensor, labels: Tensor) -> Tensor:
        """(n,) for each token the sum of `values` over the trained tokens with the same label (any integers).

        Labels are known to one rank alone, so ValueError where sequences are cut over ranks.
        """
        if self.sequences is not None and self.sequences.group_name:
            raise ValueError(
                "objective: segment_ids and group_ids must lie on one rank, got sequences that are cut over ranks; "
                "use ratios and levels of tokens or sequences there"
            )
        values = values if self.mask is None else torch.where(self.mask, values, 0)
        ids = dense_labels(labels)
        return segment_sum(values, ids, ids.shape[0])[ids]

    def label_largest(self, values: Tensor, labels: Tensor) -> Tensor:
        """(n,) for each token the largest of `values` over the trained tokens with the same label (any integers); -inf if there is none."""
        values = values if self.mask is None else torch.where(self.mask, values, float("-inf"))
        ids = dense_labels(labels)
        return segment_max(values, ids, float("-inf"))[ids]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the trained tokens; what an untrained token holds cannot matter."""
        return (values if self.mask is None else torch.where(self.mask, values, 0)).sum()

    def take(self, rows: Tensor | slice) -> "TokenBatch":
        """The batch of some tokens (packed). Sequence lengths stay those of whole sequences."""
        pick = lambda value: None if value is None else value[rows]  # noqa: E731
        sequences = None if self.sequences is None else self.sequences._replace(ids=self.sequences.ids[rows])
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
