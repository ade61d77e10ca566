"""Which response is compared with which: rows of sequence numbers (chosen, rejected)."""

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments


def halves(sequences: int, *, device: torch.device | str | None = None) -> Tensor:
    """(sequences / 2, 2) int64: the first half of the rows is chosen, the second rejected, as most trainers stack them.

    torch.arange(sequences).view(2, -1).T

    On the CPU unless `device` names another.
    """
    rows = checks.whole(sequences)
    if rows is None or rows < 0 or rows % 2:
        checks.fail("halves", "sequences", "an even number of rows", sequences, "stack one chosen and one rejected response for each pair")
    return torch.arange(rows, device="cpu" if device is None else device).view(2, -1).T.contiguous()


def in_range(function: str, pairs: Tensor, log_probs: Tensor, live: Tensor | None, fix: str) -> tuple[Tensor, Tensor]:
    """(pairs, log_probs): numbers outside the responses are refused where values are checked, and make log_probs NaN elsewhere.

    `live` (P,) bool leaves pairs out of the question.
    """
    size = log_probs.shape[0]
    outside = ((pairs < 0) | (pairs >= size)).any(1)
    outside = (outside if live is None else outside & live).any()
    if (size == 0 and pairs.shape[0]) or (checks.values_wanted(pairs, live) and bool(outside)):
        found = f"numbers from {int(pairs.min())} to {int(pairs.max())}"
        checks.fail(function, "pairs", f"numbers in 0 .. {size - 1}", found, fix)
    return pairs.clamp(0, max(size - 1, 0)), log_probs * torch.ones_like(log_probs).masked_fill(outside, float("nan"))


def all_pairs(
    scores: Tensor,  # (S,) float, the higher the better
    group: Tensor | list,  # (S,) int64 or a list of str or int, prompt of each response
    *,
    least: float = 0.0,
) -> Tensor:
    """(P, 2) int64: in each group every pair of unequal scores that differ by at least `least`, the better first.

        [(i, j) for i in range(S) for j in range(S) if group[i] == group[j] and scores[i] > scores[j] and scores[i] - scores[j] >= least]

    Ties give no pair; a NaN score is in none. S^2 comparisons, and waits for the device: it is meant for the groups of a prompt. Sources:
    the ranking loss of CPL (arXiv 2310.13639), the pairs of arXiv 2404.14367.
    """
    checks.tensor("all_pairs", "scores", scores, shape=(None,), dtypes=checks.FLOATS, fix="pass one score a response")
    group = arguments.labels("all_pairs", "group", group, torch.ones_like(scores, dtype=torch.bool))
    checks.number("all_pairs", "least", least, at_least=0.0, fix="0 takes every pair that is no tie")
    ahead = scores[:, None] - scores[None, :]
    return ((group[:, None] == group[None, :]) & (scores[:, None] > scores[None, :]) & (ahead >= least)).nonzero()
