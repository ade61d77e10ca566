"""Ordinal advantages: which response beat which, whatever the size of the rewards."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments
from .ranked import rank_rows


def rank_advantages(
    scores: Tensor,  # (S,) float, int or bool; only their order in the group counts
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    top: int | None = None,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """(responses it is known to beat - responses known to beat it) / known comparisons, within its group.

    The same, slowly (no equal scores, top=None): `(scores[i] > scores[g]).sum() - (scores[i] < scores[g]).sum()` over `n (n - 1) / 2`.

    With `top`, only the rows that fewer than `top` others beat are put in order; the rest is known to be worse than they, and
    nothing more. Equal scores are not compared with each other. A group of one and one of equal scores give 0. The sum over a
    group is 0, and any increasing map of the scores changes nothing. In float64, rounded once. Carries no gradient.
    Source: ZO-RankSGD (arXiv 2303.03751), the (m, k) ranking oracle; its released weights are one comparison too high a ranked row.
    """
    function = "rank_advantages"
    if top is not None:
        top = checks.integer(function, "top", top, at_least=1, fix="it is how many of a group are put in order; None is all")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = arguments.labels(function, "group", group, counted)
    ranked = rank_rows(values, counted, labels)
    same = moments(torch.zeros_like(values), counted, labels, (values + 0.0).view(torch.int64), ddof=1)
    equal = same.count.index_select(0, ranked.order)
    # The place of the first row with the same score: how many are worse.
    low = moments(ranked.back(ranked.place), counted, labels, (values + 0.0).view(torch.int64), ddof=1).mean.index_select(0, ranked.order)
    worse = low - (equal - 1.0) / 2.0
    better = ranked.count - worse - equal
    if top is not None:
        inside = better < float(top)
        number = ranked.total(inside.to(better.dtype))
        worse, better = torch.where(inside, worse, 0.0), torch.where(inside, better, number)
    edges = ranked.total(worse)
    return ranked.back((worse - better) / edges.clamp(min=1.0)).to(arguments.result_dtype(scores))
