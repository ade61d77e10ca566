"""What spans ranks: the counts and the rows of the whole batch, and heads whose vocabulary is sharded. Nothing here happens unasked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks
from .collectives import gathered, own_rows, scattered_sum, told
from .head import Head
from .objective import PolicyObjective, Sequences
from .objective.aggregation import Aggregation, TokenSum
from .segments import dense_labels, segment_min, segment_sum
from .sequences import Denominator, count_trained, sequences_of
from .transforms import transformed

__all__ = ["Denominator", "equal_row_counts", "gather_rows", "global_denominator", "head_of_dtensor", "with_all_rows"]


def global_denominator(
    mask: Tensor,  # (B, T) or (N,) bool, all of this rank's tokens, not one micro-batch's
    *,
    objective: PolicyObjective | None = None,  # of the loss; or its aggregation alone
    aggregation: Aggregation | None = None,
    sequence_ids: Tensor | None = None,  # shape of mask, int64, the labels that the loss is given
    process_group: "torch.distributed.ProcessGroup | None" = None,
    sequence_group: "torch.distributed.ProcessGroup | None" = None,
) -> Denominator:
    """Count the whole batch once, so that every micro-batch on every rank divides by the same number.

        total = aggregation.count(mask)                # tokens, or sequences with a trained token
        torch.distributed.all_reduce(total)            # if a process group is initialised

    Pass the result on as it is, and every part of the batch its part of the same `sequence_ids`: micro-batches of rows, of packed whole
    sequences, and (where no block pools a sequence) of parts of sequences sum to the loss and gradient of one call.
    `process_group` (default: all ranks) is everyone who has a part of the batch, each token once: leave out ranks that repeat the tokens
    of others, as those of a vocabulary-parallel head do. With `sequence_group`, its ranks hold parts of the
    same sequences (sequence or context parallelism): labels mean the same on all of them, sequences are counted once, and
    losses that are given this denominator sum over whole sequences; all ranks of the group call them together.
    No world-size factor is inside: a framework that averages gradients over ranks multiplies its loss by the world size itself.
    `per_sequence` counts this rank's sequences (those of the group) by `labels`, wherever sequence_ids are given or anything of the
    objective needs sequences. A batch that trains nothing on any rank counts 1. Waits for a device only with `sequence_group`.
    Raises without objective and aggregation, for packed tokens without labels where sequences are needed, and for a trained token of a
    label below 0 (the total is NaN where checking would wait).
    """
    function = "global_denominator"
    aggregation, needed = _counted(function, objective, aggregation)
    checks.mask(function, mask)
    sequences = sequences_of(function, mask, sequence_ids, needed=needed or sequence_ids is not None or sequence_group is not None)
    total = aggregation.count(mask, sequences).to(torch.float64)
    lengths = labels = None
    name = "" if sequence_group is None else sequence_group.group_name
    if sequences is not None:
        lengths, labels = _by_label(mask, sequence_ids, sequences, sequence_group)
    if name and aggregation.needs_sequences:  # every rank of the group counts the same sequences
        total = aggregation.count(mask, sequences._replace(lengths=lengths)).to(torch.float64)
        total /= torch.distributed.get_world_size(sequence_group)
    if sequences is not None and sequences.fault is not None:
        total = torch.where(sequences.fault, float("nan"), total)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if shared and not isinstance(aggregation, TokenSum):  # the sum's denominator is 1 however many ranks there are
        torch.distributed.all_reduce(total, group=process_group)
    # Nothing trained anywhere: the loss is 0, not 0 / 0.
    by_row = sequences is not None and sequence_ids is None
    return Denominator(total.clamp(min=1), lengths, name, labels, by_row, aggregation.counts)


def _counted(function: str, objective: PolicyObjective | None, aggregation: Aggregation | None) -> tuple[Aggregation, bool]:
    """What counts, and whether anything needs sequences."""
    if objective is None and aggregation is None:
        fix = 'pass objective=recipes.recipe("grpo").objective (for grpo_loss), or aggregation=...'
        checks.fail(function, "objective", "the objective of the loss", None, fix, error=TypeError)
    if objective is None:
        return aggregation, aggregation.needs_sequences
    if not isinstance(objective, PolicyObjective):
        checks.fail(function, "objective", "a PolicyObjective", objective, 'take recipes.recipe("gigpo").objective', error=TypeError)
    if aggregation is not None and aggregation != objective.aggregation:
        checks.fail(function, "aggregation", f"the objective's, {objective.aggregation}", aggregation, "leave it out")
    return objective.aggregation, objective.needs_sequences


def _by_label(
    mask: Tensor, sequence_ids: Tensor | None, sequences: Sequences, group: "torch.distributed.ProcessGroup | None"
) -> tuple[Tensor, Tensor | None]:
    """(n_seq,) trained tokens of each sequence, over the ranks of a group, and (n_seq,) their labels in ascending order; None: of rows.

    Without a group there are as many places as tokens, the last ones empty: to ask how many labels there are would wait for the device.
    """
    if sequence_ids is None:
        lengths = sequences.lengths
        if group is not None:
            lengths = torch.nn.functional.pad(lengths, (0, max(told(lengths.shape[0], group)) - lengths.shape[0]))
            torch.distributed.all_reduce(lengths, group=group)
        return lengths, None
    trained, last = mask.reshape(-1), torch.iinfo(torch.int64).max  # what is not trained counts for no label that is
    labels, lengths = torch.where(trained, sequence_ids.reshape(-1), last), trained.to(torch.float32)
    if group is not None:
        labels, own = labels.unique(return_inverse=True)
        lengths = count_trained(own, trained, labels.shape[0])
        counts = told(labels.shape[0], group)
        labels, lengths = gathered(labels, counts, group), gathered(lengths, counts, group)
    ids = dense_labels(labels)  # in ascending order of the labels
    return segment_sum(lengths, ids, ids.shape[0]), segment_min(labels, ids, last)


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


def equal_row_counts(
    rows: Tensor,  # (B,) bool, rows that this rank must run: loss.rows_that_matter
    *,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (B,) bool
    """`rows` and as many idle rows more as make every rank run the same number, so that FSDP's ranks meet in the same forwards.

        idle = (~rows).nonzero()[: largest_count_of_a_rank - rows.sum()];  rows[idle] = True

    Idle rows cannot change the loss or a gradient, so running them is exact. No rank has a row that matters: all False, on every rank.
    All ranks of the group (default: all there are) call together. Raises on every rank if one has too few rows to fill up with.
    """
    function = "equal_row_counts"
    bad = not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype != torch.bool
    seen = told((-1, checks.describe(rows)) if bad else (int(rows.sum()), rows.numel()), process_group)
    for rank, (count, got) in enumerate(seen):
        if count < 0:
            fix = "pass loss.rows_that_matter(mask, advantages, objective=...)"
            checks.fail(function, "rows", "(B,) bool on every rank", f"{got} on rank {rank}", fix, error=TypeError)
    most = max(count for count, _ in seen)
    short = [rank for rank, (_, held) in enumerate(seen) if held < most]
    if short:
        got = f"{seen[short[0]][1]} on rank {short[0]}, where another rank has {most} that matter"
        checks.fail(function, "rows", "as many on each rank as any rank must run", got, "give the ranks equal numbers of rows")
    idle = (~rows).nonzero().squeeze(1)[: most - int(rows.sum())]
    return rows.index_fill(0, idle, True)


def gather_rows(
    local: Tensor,  # (n, ...) rows of this rank; n may differ between ranks and be 0
    *,
    sum_gradients: bool,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (sum of n, ...) the same on every rank
    """The rows of all ranks, one rank's behind the other's, for whoever wants them together; differentiable.

        torch.cat(rows_of_each_rank)

    The gradient of a row is, with `sum_gradients`, the sum of what every rank sends back to it (a reduce-scatter; summed in float32 or
    better and rounded once): right where each rank goes on to a loss of its own and their sum is trained. Without, it is what this rank
    alone sends back (no communication): right where all ranks compute one and the same loss from the rows, as a vocabulary-parallel head
    does, whose d_hidden arrives summed. All ranks of the group (default: all there are) call, and differentiate, together.
    Nothing is rounded. Raises on every rank if trailing shapes, dtypes or the wish for a gradient differ between ranks.
    """
    function = "gather_rows"
    sum_gradients = checks.switch(function, "sum_gradients", sum_gradients)
    if isinstance(local, Tensor) and local.dim() > 0:
        mine = (tuple(local.shape), str(local.dtype), torch.is_grad_enabled() and local.requires_grad)
    else:
        mine = checks.describe(local)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if transformed() and shared and torch.distributed.get_world_size(process_group) > 1:
        got, fix = "a transform around the ranks' exchange", "gather outside of it, or differentiate with backward()"
        checks.fail(function, "local", "gathered outside of torch.func and forward mode", got, fix, error=RuntimeError)
    seen = [mine] if transformed() else told(mine, process_group)
    for rank, one in enumerate(seen):
        if isinstance(one, str):
            checks.fail(function, "local", "(n, ...) on every rank", f"{one} on rank {rank}", "pass a tensor of rows", error=TypeError)
    every = {
        "trailing shape": [one[0][1:] for one in seen],
        "dtype": [one[1] for one in seen],
        "wish for a gradient": [one[2] for one in seen],
    }
    for what, values in every.items():
        if len(set(values)) > 1:
            fix = "a rank without rows passes (0, ...) like the others', with requires_grad_() if theirs have it"
            checks.fail(function, "local", f"of one {what} on all ranks", f"{values} in rank order", fix)
    if len(seen) == 1:
        return local.clone()
    return _GatherRows.apply(local, [one[0][0] for one in seen], process_group, sum_gradients)


class _GatherRows(torch.autograd.Function):
    """Gathers rows; the backward cuts this rank's out of its own gradient, or out of the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: list[int], process_group: Any, sum_gradients: bool) -> Tensor:
        ctx.counts, ctx.process_group, ctx.sum_gradients = counts, process_group, sum_gradients
        return gathered(local, counts, process_group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.sum_gradients:
            wide = gradient.to(checks.compute_dtype(gradient.dtype))
            return scattered_sum(wide, ctx.counts, ctx.process_group).to(gradient.dtype), None, None, None
        return gradient[own_rows(ctx.counts, ctx.process_group)], None, None, None


def with_all_rows(
    function: Callable[..., Any],  # of `advantage`: from rows to one result a row, or a NamedTuple of such
    rows: dict[str, Tensor | list | None],  # its row arguments by name: (S, ...) tensors or lists of this rank's S rows
    *,
    process_group: "torch.distributed.ProcessGroup | None" = None,
    **options: Any,  # its other arguments, the same on every rank
) -> Any:
    """What `function` gives for the rows of all ranks in rank order, cut back to this rank's: a group may lie on several ranks.

        whole = function(**{name: torch.cat(value_of_each_rank) for name, value in rows.items()}, **options)
        return whole[own_rows]                                   # of a NamedTuple, each of its tensors

    The same numbers, bit by bit, as one process with all rows. Rows are a few numbers a step, so gathering them is cheap. For
    `group_advantages`, `gigpo_advantages` and their relatives; labels must mean the same on every rank, as the ids of
    `anchor.group_states(..., process_group=...)` do. All ranks of the group (default: all there are) call together; a rank may have no
    rows. Carries no gradient. Raises on every rank where ranks differ in kinds or dtypes of arguments or in options, where arguments of
    a rank have unequal lengths, and where a result does not have a row for each row.
    """
    name = "with_all_rows"
    mine = {key: _kind(value) for key, value in rows.items()}, {key: repr(value) for key, value in options.items()}
    lengths = {key: len(value) for key, value in rows.items() if value is not None}
    seen = told((*mine, lengths), process_group)
    for rank, (kinds, others, long) in enumerate(seen):
        for argument, got, want in (("rows", kinds, seen[0][0]), ("options", others, seen[0][1])):
            if got != want:
                both = f"{got} on rank {rank}, {want} on rank 0"
                checks.fail(name, argument, "of the same names, kinds and values on all ranks", both, "call alike on all ranks")
        if len(set(long.values())) != 1:
            checks.fail(name, "rows", "of one length on each rank", f"{long} on rank {rank}", "give every argument one entry a row")
    counts = [next(iter(long.values())) for *_, long in seen]

    def all_of(value: Tensor | list | None) -> Tensor | list | None:
        if isinstance(value, Tensor):
            return gathered(value.detach(), counts, process_group)
        return None if value is None else [entry for part in told(list(value), process_group) for entry in part]

    found = function(**{key: all_of(value) for key, value in rows.items()}, **options)
    parts = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(part, Tensor) and part.dim() and part.shape[0] == sum(counts) for part in parts):
        got = ", ".join(checks.describe(part) for part in parts)
        checks.fail(name, "function", f"one whose results have {sum(counts)} rows, as its arguments", f"results {got}", "gather by hand")
    own = own_rows(counts, process_group)
    return type(found)(*(part[own] for part in parts)) if isinstance(found, tuple) else found[own]


def _kind(value: Any) -> str:
    return str(value.dtype) + str(list(value.shape[1:])) if isinstance(value, Tensor) else type(value).__name__
