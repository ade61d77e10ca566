"""Advantages for the best of k: what a response adds to the maximum, or to the chance that one of k is right."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments
from .ranked import log_binomial, rank_rows
from .statistics import CORRECTED, GroupStatistics, check_options


def max_at_k_advantages(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    k: int | None = None,
    scale: str | None = None,
    statistics: GroupStatistics = CORRECTED,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """What a response adds to the best of k, leave-one-out: the mean over all k-subsets I of its group of max(I) - max(I without it).

    The same, slowly:

        subsets = itertools.combinations(rows_of_group, k)
        advantages[i] = sum(max(scores[I]) - max(scores[I - {i}]) for I in subsets if i in I) / math.comb(n, k)

    With k=None, k is the group's size: the best row gets best minus second best, every other 0, and all 0 where the best is shared.
    Groups smaller than k use their own size; a group of one gives 0 ("raw": its score, over 1 + eps if scaled). scale="std" divides
    by the group's standard deviation + eps; constant groups give 0.
    In float64, result rounded once. Carries no gradient. Where values are checked raises for scores that are not finite.
    Source: PKPO's leave-one-out-minus-one estimator (arXiv 2505.15201); k=None is verl's grpo_passk.
    """
    function = "max_at_k_advantages"
    check_options(function, scale, statistics)
    _check_k(function, k, 2)
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = arguments.labels(function, "group", group, counted)
    ranked = rank_rows(values, counted, labels)
    size = ranked.count if k is None else ranked.count.clamp(max=float(k))
    # Of the subsets in which row i is the highest, those whose others are among the m lowest rows number C(m, k - 1). Summed over the
    # gaps between neighbours, so that equal scores add exactly 0.
    share = (log_binomial(ranked.place, size - 1.0) - log_binomial(ranked.count, size)).exp()
    added = share * ranked.gap
    added = ranked.back(ranked.below(added) + added)
    whole = moments(values, counted, labels, ddof=statistics.ddof)
    alone = values if statistics.singleton == "raw" else torch.zeros_like(values)
    if scale == "std":
        added, alone = torch.where(whole.flat, 0.0, added / (whole.std + statistics.eps)), alone / (1.0 + statistics.eps)
    return torch.where(counted, torch.where(whole.count > 1.0, added, alone), 0.0).to(arguments.result_dtype(scores))


def pass_at_k_advantages(
    scores: Tensor,  # (S,) float, int or bool; 0 and 1 for right and wrong
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    k: int,
    eps: float = 0.0,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """GRPO over k-subsets: a response gets the mean standardised reward of the subsets that it is in, the maximum being the reward.

    The same, slowly:

        rewards = {I: max(scores[I]) for I in itertools.combinations(rows_of_group, k)}
        mean, std = moments of the rewards over all subsets (over n, not n - 1)
        advantages[i] = (mean of rewards[I] over the subsets I with i - mean) / (std + eps)

    A closed form, so no subset is sampled. For right and wrong answers this is (1 - R) / s for a right one and
    (1 - R - C(n_wrong - 1, k - 1) / C(n - 1, k - 1)) / s for a wrong one, R = 1 - C(n_wrong, k) / C(n, k), s = sqrt(R (1 - R)).
    k=1 is GRPO with the population's deviation. Where every subset has the same reward, as in a constant group or one of at
    most k rows, the result is 0.
    In float64, result rounded once. Carries no gradient. Where values are checked raises for scores that are not finite.
    Source: Pass@k Training (arXiv 2508.10751), the analytical derivation.
    """
    function = "pass_at_k_advantages"
    _check_k(function, k, 1)
    eps = checks.number(function, "eps", eps, at_least=0.0, fix="0.0 is the paper's")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    ranked = rank_rows(values, counted, arguments.labels(function, "group", group, counted))
    size = ranked.count.clamp(max=float(k))
    # Row j is the highest of C(j, k - 1) subsets of all, and of C(j - 1, k - 2) of those that hold a given row below it.
    highest = (log_binomial(ranked.place, size - 1.0) - log_binomial(ranked.count, size)).exp()
    highest_with = (log_binomial(ranked.place - 1.0, size - 2.0) - log_binomial(ranked.count - 1.0, size - 1.0)).exp()
    itself = (log_binomial(ranked.place, size - 1.0) - log_binomial(ranked.count - 1.0, size - 1.0)).exp()
    mean = ranked.total(highest * ranked.scores)
    deviation = ranked.total(highest * (ranked.scores - mean).square()).sqrt()
    own = itself * ranked.scores + ranked.above(highest_with * ranked.scores)
    # Exactly 0 where every subset holds one of the best rows, because the best scores are 0 here.
    result = torch.where(deviation > 0.0, (own - mean) / (deviation + eps), 0.0)
    return ranked.back(result).to(arguments.result_dtype(scores))


def _check_k(function: str, k: int | None, least: int) -> None:
    if k is None and least == 2:
        return
    checks.integer(function, "k", k, at_least=least, fix="k is how many responses a user draws")
