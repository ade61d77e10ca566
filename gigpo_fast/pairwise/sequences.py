"""The log-prob of a whole response: the sum over its trained tokens, from log-probs per token or from hidden states and the head."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..constants import constant
from ..head import Head, token_ids_checked
from ..inference import takes_inference_tensors
from ..logprob import linear_token_log_probs
from ..segments import segment_sum
from ..transforms import batched, transformed


class SequenceLogProbs(NamedTuple):
    """One number a sequence."""

    log_probs: Tensor  # (S,) float32 (float64 for float64 inputs), nats, differentiable; 0 for a sequence without trained tokens
    lengths: Tensor  # (S,) the same dtype, trained tokens


@takes_inference_tensors
def sequence_log_probs(
    log_probs: Tensor,  # (B, T) or (N,) float, log pi of the tokens, nats
    mask: Tensor,  # shape of log_probs, bool, True = this token belongs to the response
    *,
    sequence_ids: Tensor | None = None,  # shape of log_probs, int64: which sequence a token belongs to; default the row
    sequences: int | None = None,  # how many sequences there are; needed with sequence_ids
    token_weights: Tensor | None = None,  # shape of log_probs, float: gamma^t, or less for the surplus of the longer response
) -> SequenceLogProbs:
    """Sum of the trained tokens' log-probs over each sequence.

        torch.where(mask, token_weights * log_probs, 0).sum(-1), mask.sum(-1)

    Untrained tokens cannot touch values or gradients, whatever is stored there; a sequence without tokens has log-prob 0. Arithmetic in
    fp32 (fp64 for fp64). With sequence_ids the sums run in the order of the tokens; here they are places in the result, which pairs refer
    to: 0 .. sequences - 1, and -1 for padding. Raises for packed tokens without sequence_ids, on unequal shapes and, where values are
    checked, for a trained token with another number; where checking would wait all results are NaN then.
    """
    function = "sequence_log_probs"
    checks.tensor(function, "log_probs", log_probs, dtypes=checks.FLOATS, fix="pass logprob.token_log_probs(...).log_probs")
    shape = tuple(log_probs.shape)
    sequences = _sequences(function, shape, sequence_ids, sequences, log_probs.device, mask)
    kept = _weighted(function, torch.where(mask, log_probs.to(checks.compute_dtype(log_probs.dtype)), 0), token_weights, mask)
    if sequence_ids is None:
        return SequenceLogProbs(kept.sum(-1), mask.sum(-1).to(kept.dtype))
    ids, factor = _addresses(sequence_ids.reshape(-1), mask.reshape(-1), sequences, kept.dtype)
    return _summed((kept * factor).reshape(-1), mask.reshape(-1), ids, sequences)


@takes_inference_tensors
def linear_sequence_log_probs(
    hidden: Tensor,  # (B, T, H) or (N, H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (B, T) or (N,) int64: the response's tokens, at the positions that predict them
    mask: Tensor,  # shape of token_ids, bool
    *,
    sequence_ids: Tensor | None = None,  # shape of token_ids, int64
    sequences: int | None = None,
    token_weights: Tensor | None = None,  # shape of token_ids, float
    temperature: float | Tensor = 1.0,  # or shape of token_ids
    chunk_bytes: int | None = None,
    invariant: bool = False,
) -> SequenceLogProbs:
    """`sequence_log_probs` of hidden states and head; no N x V logits are ever held, and untrained tokens never reach the head.

        log_probs = logprob.token_log_probs((hidden @ weight.T + bias).float(), token_ids, temperature=temperature).log_probs
        sequence_log_probs(log_probs, mask, sequence_ids=sequence_ids, ...)

    Finding the trained tokens waits for the device once. Operations, memory and precision of the rest are those of
    `logprob.linear_token_log_probs` over the trained tokens, whose hidden states are gathered: trained x H in the hidden's
    dtype, and as much again for their gradient.
    """
    function = "linear_sequence_log_probs"
    if not isinstance(token_ids, Tensor):
        checks.tensor(function, "token_ids", token_ids)
    shape = tuple(token_ids.shape)
    if not isinstance(hidden, Tensor) or tuple(hidden.shape[:-1]) != shape:
        checks.fail(
            function,
            "hidden",
            f"{(*shape, 'H')} float",
            hidden,
            "pass one hidden state a token",
            error=ValueError if isinstance(hidden, Tensor) else TypeError,
        )
    sequences = _sequences(function, shape, sequence_ids, sequences, hidden.device, mask)
    whole = head if isinstance(head, Head) else Head(head)
    if isinstance(whole.weight, Tensor) and whole.group_name is None:  # here, where an id's place in the batch is known
        columns = whole.weight.shape[0] if whole.vocab_size is None else whole.vocab_size
        token_ids_checked(function, token_ids, shape, hidden.device, columns, mask)
    if batched() or (transformed() and torch.compiler.is_compiling()):  # how many tokens are trained is not known: all are scored
        hidden = torch.where(mask.unsqueeze(-1), hidden, 0)
        how = {"temperature": temperature, "chunk_bytes": chunk_bytes, "invariant": invariant}
        log_probs = linear_token_log_probs(hidden, head, token_ids, **how).log_probs
        named = None if sequence_ids is None else sequences
        return sequence_log_probs(log_probs, mask, sequence_ids=sequence_ids, sequences=named, token_weights=token_weights)
    rows = mask.reshape(-1).nonzero()[:, 0]
    if sequence_ids is None:
        ids, factor = torch.div(rows, max(shape[-1], 1), rounding_mode="floor"), 1.0
    else:
        trained = torch.ones_like(rows, dtype=torch.bool)
        ids, factor = _addresses(sequence_ids.reshape(-1)[rows], trained, sequences, checks.compute_dtype(hidden.dtype))
    if isinstance(temperature, Tensor) and temperature.dim():
        checks.tensor(function, "temperature", temperature, shape=shape, fix="pass a float or one number a token")
        temperature = temperature.reshape(-1)[rows]
    # The gradient of a gather by distinct rows is a scatter: what lies between them stays exactly 0.
    gathered = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
    log_probs = linear_token_log_probs(
        gathered, head, token_ids.reshape(-1)[rows], temperature=temperature, chunk_bytes=chunk_bytes, invariant=invariant
    ).log_probs
    log_probs = _weighted(function, log_probs, token_weights, mask, rows) * factor
    return _summed(log_probs, torch.ones_like(rows, dtype=torch.bool), ids, sequences)


def _summed(log_probs: Tensor, trained: Tensor, ids: Tensor, sequences: int) -> SequenceLogProbs:
    return SequenceLogProbs(segment_sum(log_probs, ids, sequences), segment_sum(trained.to(log_probs.dtype), ids, sequences))


def _addresses(ids: Tensor, trained: Tensor, sequences: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers that are safe to add at, and the factor of every log-prob: 1, or NaN where a number is none and checking would wait."""
    wrong = trained & ((ids < 0) | (ids >= sequences))
    factor = torch.ones((), dtype=dtype, device=ids.device).masked_fill(wrong.any(), float("nan"))
    return torch.where(trained & ~wrong, ids, 0), factor


def _sequences(function: str, shape: tuple[int, ...], sequence_ids, sequences, device, mask) -> int:
    """How many sequences there are, after the checks that both functions share."""
    if len(shape) not in (1, 2):
        checks.fail(
            function, "the tokens' shape", "(B, T) or packed (N,)", f"{shape} has {len(shape)} dimensions", "flatten further dimensions"
        )
    checks.mask(function, mask, shape, device)
    if sequence_ids is None:
        if len(shape) == 1:
            checks.fail(
                function,
                "sequence_ids",
                f"given as {shape} int64 for packed tokens",
                None,
                "number the sequences from 0, one number a token",
            )
        if sequences is not None and sequences != shape[0]:
            checks.fail(function, "sequences", f"None or {shape[0]}, the number of rows", sequences, "leave it out, or give sequence_ids")
        return shape[0]
    checks.tensor(
        function,
        "sequence_ids",
        sequence_ids,
        shape=shape,
        dtypes=(torch.int64,),
        device=device,
        fix="give every token the number of its sequence",
    )
    given, sequences = sequences, checks.whole(sequences)
    if sequences is None or sequences < 1:
        checks.fail(
            function,
            "sequences",
            "the number of sequences (>= 1) where sequence_ids is given",
            given,
            "pass it: asking the device for the largest number would wait for it",
        )
    if checks.values_wanted(sequence_ids, mask):
        trained = sequence_ids[mask]
        if trained.numel() and (int(trained.min()) < 0 or int(trained.max()) >= sequences):
            found = f"numbers from {int(trained.min())} to {int(trained.max())}"
            checks.fail(
                function,
                "sequence_ids",
                f"in 0 .. {sequences - 1} at trained tokens",
                found,
                "number the responses from 0, as pairs count them (-1 is padding), or raise `sequences`",
            )
    return sequences


def _weighted(function: str, kept: Tensor, weights: Tensor | None, mask: Tensor, rows: Tensor | None = None) -> Tensor:
    if weights is None:
        return kept
    checks.tensor(
        function, "token_weights", weights, shape=tuple(mask.shape), dtypes=checks.FLOATS, device=kept.device, fix="pass one weight a token"
    )
    weights = constant(function, "token_weights", weights).to(kept.dtype)
    return kept * (torch.where(mask, weights, 0) if rows is None else weights.reshape(-1)[rows])
