"""What spans ranks: how many tokens or sequences the whole batch has, and heads whose vocabulary is sharded."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .collectives import largest_over_ranks
from .head import Head
from .objective import Sequences
from .objective.aggregation import Aggregation, TokenSum
from .sequences import sequences_of


class Denominator(NamedTuple):
    """What a loss is divided by, counted over the full batch and given to every call on a part of it."""

    total: float | Tensor  # tokens or sequences of the whole batch, as the aggregation counts them
    per_sequence: Tensor | None = None  # (n_seq,) trained tokens of each whole sequence, if a call sees only parts of sequences
    sequence_group: str = ""  # group_name of the ranks over which sequences are cut (sequence or context parallelism)


def global_denominator(
    mask: Tensor,  # (B, T) or (N,) bool, all of this rank's tokens, not one micro-batch's
    *,
    aggregation: Aggregation,
    sequence_ids: Tensor | None = None,  # shape of mask, int64
    process_group: "torch.distributed.ProcessGroup | None" = None,
    sequence_group: "torch.distributed.ProcessGroup | None" = None,
) -> Denominator:
    """Count the whole batch once, so that every micro-batch on every rank divides by the same number.

        total = aggregation.count(mask)                # tokens, or sequences with a trained token
        torch.distributed.all_reduce(total)            # if a process group is initialised

    `process_group` (default: all ranks) is everyone who has a part of the batch. With `sequence_group`, its ranks hold parts of the
    same sequences (sequence or context parallelism): sequence numbers mean the same on all of them, sequences are counted once, and
    losses that are given this denominator sum over whole sequences; all ranks of the group call them together.
    No world-size factor is inside: a framework that averages gradients over ranks multiplies its loss by the world size itself.
    `per_sequence` counts this rank's sequences (those of the group), for micro-batches that cut a sequence; pass the same
    `sequence_ids` numbers to the loss.
    """
    checks.mask("global_denominator", mask)
    needed = aggregation.needs_sequences or sequence_group is not None
    sequences = sequences_of("global_denominator", mask, sequence_ids, needed=needed)
    total = aggregation.count(mask, sequences).to(torch.float64)
    lengths = None if sequences is None else sequences.lengths
    name = "" if sequence_group is None else sequence_group.group_name
    if name:
        lengths = _whole_lengths(mask.reshape(-1), sequences, name, by_row=sequence_ids is None)
        if aggregation.needs_sequences:  # every rank of the group counts the same sequences
            total = aggregation.count(mask, sequences._replace(lengths=lengths)).to(torch.float64)
            total /= torch.distributed.get_world_size(sequence_group)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if shared and not isinstance(aggregation, TokenSum):  # the sum's denominator is 1 however many ranks there are
        torch.distributed.all_reduce(total, group=process_group)
    return Denominator(total, lengths, name)


def _whole_lengths(mask: Tensor, sequences: Sequences, group_name: str, *, by_row: bool) -> Tensor:
    """(n_seq,) trained tokens of each sequence over the ranks of a group, which may have different numbers of tokens."""
    largest = torch.where(mask, sequences.ids, -1).amax() if mask.numel() else sequences.ids.new_tensor(-1)
    count = sequences.lengths.shape[0] if by_row else int(largest_over_ranks(largest + 1, group_name))
    ids = sequences.ids.clamp(max=max(count - 1, 0))
    return Sequences(ids, torch.zeros(count, device=mask.device), group_name).sums(mask.to(torch.float32))


def head_of_dtensor(weight: Tensor, bias: Tensor | None = None, **features: float | int | None) -> Head:
    """A `Head` of a DTensor weight (V, H) on a one-dimensional mesh: its columns stay where they are, and the losses work on all of them.

    Sharded over the vocabulary (dimension 0): a vocabulary-parallel head of the mesh's group, every rank with the same tokens.
    Replicated: a whole head. Gradients flow back into the DTensor. `features` are those of `Head`: logit_scale, softcap, vocab_size.
    Raises for another placement, since that would need a gather, which is never done silently.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    function = "head_of_dtensor"
    if not isinstance(weight, DTensor):
        checks.fail(function, "weight", "a DTensor", weight, "pass Head(weight) for a plain tensor", error=TypeError)
    if weight.device_mesh.ndim != 1 or weight.placements[0] not in (Shard(0), Replicate()):
        expected = "sharded over its vocabulary (dimension 0) or replicated"
        got = f"placements {weight.placements} on a mesh of {weight.device_mesh.ndim} dimensions"
        checks.fail(function, "weight", expected, got, "redistribute it, or call inside LinearPolicyLoss, which FSDP2 unshards")
    if bias is not None and (not isinstance(bias, DTensor) or bias.placements != weight.placements):
        checks.fail(function, "bias", f"a DTensor placed like the weight, {weight.placements}", bias, "distribute both alike")
    # A replicated head sees the same tokens on every rank, so its gradient is replicated too; a sharded one's is the rank's own.
    local = [None if value is None else value.to_local(grad_placements=weight.placements) for value in (weight, bias)]
    group = weight.device_mesh.get_group().group_name if weight.placements[0] == Shard(0) else None
    return Head(*local, **features, group_name=group)
