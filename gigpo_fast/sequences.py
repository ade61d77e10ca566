"""What one *sequence* is: the row, unless the caller says otherwise."""

import torch
from torch import Tensor

from . import checks
from .objective.batch import Sequences


def sequences_of(
    function: str,
    mask: Tensor,  # (B, T) or (N,) bool
    sequence_ids: Tensor | None,  # shape of mask, int64, dense numbers from 0, -1 at untrained tokens
    *,
    needed: bool,
    per_sequence: Tensor | None = None,  # (n_seq,) lengths of whole sequences, if this call sees only parts
    group_name: str = "",  # the ranks that have the other parts
) -> Sequences | None:
    """The flattened sequence of every token and every sequence's number of trained tokens; None where nothing needs it.

    Default: the row of a (B, T) batch. Packed (N,) tensors have no rows, so there sequence_ids must be given.
    """
    if sequence_ids is not None:
        checks.tensor(
            function,
            "sequence_ids",
            sequence_ids,
            shape=tuple(mask.shape),
            dtypes=(torch.int64,),
            device=mask.device,
            fix="give every token the number of its sequence, -1 at untrained tokens (anchor.group_ids makes dense numbers)",
        )
    if not needed:
        return None
    if sequence_ids is None:
        if mask.dim() != 2:
            checks.fail(
                function,
                "sequence_ids",
                f"given as {tuple(mask.shape)} int64 for packed tokens with an objective that needs sequences",
                None,
                "number the sequences from 0, one number a token",
            )
        ids = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1).expand(mask.shape).reshape(-1)
        bound = mask.shape[0]
        if per_sequence is not None and per_sequence.shape[0] != bound:
            checks.fail(
                function,
                "denominator.per_sequence",
                f"({bound},), one length a row",
                per_sequence,
                "count it with the same rows or sequence_ids",
            )
    else:
        bound = mask.numel() if per_sequence is None else per_sequence.shape[0]
        flat = sequence_ids.reshape(-1)
        if checks.values_wanted(flat, mask):
            trained = flat[mask.reshape(-1)]
            if trained.numel() and (int(trained.min()) < 0 or int(trained.max()) >= bound):
                checks.fail(
                    function,
                    "sequence_ids",
                    f"dense numbers in 0 .. {bound - 1} at trained tokens",
                    f"numbers from {int(trained.min())} to {int(trained.max())}",
                    "renumber them with anchor.group_ids",
                )
        ids = flat.clamp(0, max(bound - 1, 0))
    if per_sequence is not None:
        return Sequences(ids, per_sequence.to(mask.device), group_name)
    counted = Sequences(ids, torch.zeros(bound, device=mask.device, dtype=torch.float32))
    return Sequences(ids, counted.sums(mask.reshape(-1).to(torch.float32)))
