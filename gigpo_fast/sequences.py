"""What one *sequence* is: the row, unless labels say otherwise; and how long the whole sequences of a batch are.

Labels are any int64 numbers >= 0, in any order, with any gaps; -1 is padding, of no sequence. They are compared, never used as
addresses, and what stands at an untrained token cannot matter. Nothing here waits for a device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .objective.batch import Sequences
from .segments import dense_labels, segment_sum

_SAME = "give the loss and distributed.global_denominator the same sequence_ids"


class Denominator(NamedTuple):
    """What a loss is divided by, counted over the full batch and given to every call on a part of it."""

    total: float | Tensor  # tokens or sequences of the whole batch, as the aggregation counts them
    per_sequence: Tensor | None = None  # (n_seq,) trained tokens of each whole sequence of the batch
    sequence_group: str = ""  # group_name of the ranks over which sequences are cut (sequence or context parallelism)
    labels: Tensor | None = None  # (n_seq,) int64, ascending: whose length each is; None: the length of row i, or of label i
    by_row: bool = False  # lengths of the rows of a (B, T) batch; a call on fewer rows then counts its own, which are whole
    counts: str = ""  # what `total` is a number of: the aggregation's `counts`; "": not said, and not compared


def sequences_of(
    function: str,
    mask: Tensor,  # (B, T) or (N,) bool
    sequence_ids: Tensor | None,  # shape of mask, int64
    *,
    needed: bool,
    denominator: Denominator | None = None,
    pooled: bool = False,  # coefficients depend on all tokens of the sequence, so a part of one will not do
) -> Sequences | None:
    """The flattened sequence of every token and every sequence's number of trained tokens; None where nothing needs it.

    Default: the row of a (B, T) batch. Packed (N,) tensors have no rows, so there sequence_ids must be given.
    Labels that would be refused where values are checked set `fault` elsewhere.
    """
    if sequence_ids is not None:
        fix = "give every token the label of its sequence, any integers >= 0; -1 is padding (packing.sequence_ids_of makes them)"
        checks.tensor(
            function, "sequence_ids", sequence_ids, shape=tuple(mask.shape), dtypes=(torch.int64,), device=mask.device, fix=fix
        )
    if not needed:
        if sequence_ids is not None and checks.values_wanted(sequence_ids, mask):
            labels = sequence_ids.reshape(-1)
            _no_label(function, mask, mask.reshape(-1) & (labels < 0), labels)
        return None
    whole = Denominator(1.0) if denominator is None else denominator
    if sequence_ids is None:
        return _rows(function, mask, whole, pooled)
    trained = mask.reshape(-1)
    labels = torch.where(trained, sequence_ids.reshape(-1), -1)
    nowhere = trained & (labels < 0)
    fault = _no_label(function, mask, nowhere, labels)
    if whole.per_sequence is None:
        ids = dense_labels(labels)
        return Sequences(ids, count_trained(ids, trained, ids.shape[0]), "", fault)
    if whole.by_row:
        checks.fail(function, "sequence_ids", "None with a denominator that counted rows", sequence_ids, _SAME)
    lengths = whole.per_sequence.to(mask.device)
    if lengths.shape[0] == 0 and labels.shape[0]:
        checks.fail(function, "denominator.per_sequence", "the lengths of the batch's sequences", lengths, _SAME)
    ids, unknown = _found(labels, whole.labels, lengths.shape[0])
    fault = fault | _fault(
        function,
        "sequence_ids",
        mask,
        trained & unknown & ~nowhere,
        "labels that the denominator counted",
        lambda place: f"{int(labels[place])}, which it did not count,",
        _SAME,
    )
    sequences = Sequences(ids, lengths, whole.sequence_group, fault)
    own = count_trained(ids, trained & ~unknown, lengths.shape[0])
    return _check_lengths(function, mask, sequences, own, pooled)


def _no_label(function: str, mask: Tensor, nowhere: Tensor, labels: Tensor) -> Tensor:
    """0-dim bool, whether a trained token is of no sequence."""
    return _fault(
        function,
        "sequence_ids",
        mask,
        nowhere,
        "labels >= 0 at trained tokens",
        lambda place: f"{int(labels[place])}",
        "give every token the label of its sequence, trained or not; -1 is padding, of no sequence",
    )


def count_trained(ids: Tensor, trained: Tensor, size: int) -> Tensor:
    """(size,) float32, the trained tokens of each sequence."""
    return segment_sum(trained.to(torch.float32), ids, size)


def _rows(function: str, mask: Tensor, whole: Denominator, pooled: bool) -> Sequences:
    """Every row a sequence."""
    if mask.dim() != 2:
        checks.fail(
            function,
            "sequence_ids",
            f"given as {tuple(mask.shape)} int64 for packed tokens with an objective that needs sequences",
            None,
            "give every token the label of its sequence (packing.sequence_ids_of makes them)",
        )
    if whole.labels is not None:
        checks.fail(function, "sequence_ids", "given with a denominator that counted labelled sequences", None, _SAME)
    rows = mask.shape[0]
    ids = torch.arange(rows, device=mask.device).unsqueeze(1).expand(mask.shape).reshape(-1)
    own = mask.sum(1).to(torch.float32)
    if whole.per_sequence is None:
        return Sequences(ids, own)
    counted = whole.per_sequence.shape[0]
    if rows == counted:
        return _check_lengths(function, mask, Sequences(ids, whole.per_sequence.to(mask.device), whole.sequence_group), own, pooled)
    if whole.by_row and not whole.sequence_group and rows < counted:
        return Sequences(ids, own)
    fix = "count the whole batch: all of this rank's rows, or labels of sequences (sequence_ids) there and here"
    checks.fail(function, "denominator.per_sequence", f"({rows},), one length a row", whole.per_sequence, fix)


def _found(labels: Tensor, known: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """The place of each label among those that were counted (0 where it is not), and (N,) bool, which are not."""
    if known is None:
        unknown = (labels < 0) | (labels >= size)
        return torch.where(unknown, 0, labels), unknown
    known = known.to(labels.device)
    place = torch.searchsorted(known, labels).clamp(max=max(size - 1, 0))
    unknown = (known[place] != labels) | (labels < 0)
    return torch.where(unknown, 0, place), unknown


def _check_lengths(function: str, mask: Tensor, sequences: Sequences, own: Tensor, pooled: bool) -> Sequences:
    """Refuse sequences that are longer here than as a whole, and parts of one where all of it is needed."""
    if sequences.group_name:
        return sequences  # the rest lies on other ranks
    trained, fault = mask.reshape(-1), sequences.fault
    here, all_of_it = own[sequences.ids], sequences.lengths[sequences.ids]
    got = lambda place: f"{int(all_of_it[place])} where {int(here[place])} tokens of the sequence are trained,"  # noqa: E731
    more = _fault(
        function,
        "denominator.per_sequence",
        mask,
        trained & (here > all_of_it),
        "the trained tokens of each whole sequence",
        got,
        f"count again after reordering or masking, and {_SAME}",
    )
    fault = more if fault is None else fault | more
    if pooled:
        fault = fault | _fault(
            function,
            "the batch",
            mask,
            trained & (here < all_of_it),
            "of whole sequences for an objective that pools them",
            lambda place: f"{int(here[place])} of {int(all_of_it[place])} trained tokens of the sequence",
            "keep a sequence in one micro-batch, or pass sequence_group where its parts lie on several ranks",
        )
    return sequences._replace(fault=fault)


def _fault(function, argument, mask, wrong, expected, got, fix) -> Tensor:
    """0-dim bool, whether any token is `wrong`; raises with the first one where values are checked."""
    found = wrong.any()
    if checks.values_wanted(found) and bool(found):
        place = int(wrong.nonzero()[0])
        at = [place // mask.shape[1], place % mask.shape[1]] if mask.dim() == 2 else [place]
        checks.fail(function, argument, expected, f"{got(place)} at {at}", fix)
    return found
