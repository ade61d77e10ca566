"""Denominators: how many tokens or sequences the whole batch has, over micro-batches and ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .objective.aggregation import Aggregation, TokenSum
from .sequences import sequences_of


class Denominator(NamedTuple):
    """What a loss is divided by, counted over the full batch and given to every call on a part of it."""

    total: float | Tensor  # tokens or sequences of the whole batch, as the aggregation counts them
    per_sequence: Tensor | None = None  # (n_seq,) trained tokens of each whole sequence, if a call sees only parts of sequences


def global_denominator(
    mask: Tensor,  # (B, T) or (N,) bool, all of this rank's tokens, not one micro-batch's
    *,
    aggregation: Aggregation,
    sequence_ids: Tensor | None = None,  # shape of mask, int64
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Denominator:
    """Count the whole batch once, so that every micro-batch on every rank divides by the same number.

        total = aggregation.count(mask)                # tokens, or sequences with a trained token
        torch.distributed.all_reduce(total)            # if a process group is initialised

    Sequences must not be split over ranks. No world-size factor is inside: a framework that averages gradients over
    ranks multiplies its loss by the world size itself. `per_sequence` counts this rank's sequences, for micro-batches
    that cut a sequence; pass the same `sequence_ids` numbers to the loss.
    """
    checks.mask("global_denominator", mask)
    sequences = sequences_of("global_denominator", mask, sequence_ids, needed=aggregation.needs_sequences)
    total = aggregation.count(mask, sequences).to(torch.float64)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if shared and not isinstance(aggregation, TokenSum):  # the sum's denominator is 1 however many ranks there are
        torch.distributed.all_reduce(total, group=process_group)
    return Denominator(total, None if sequences is None else sequences.lengths)
