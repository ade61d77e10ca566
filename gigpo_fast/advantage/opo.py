"""OPO: the baseline that minimises variance when a gradient's size grows with the length of the response."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments
from .statistics import CORRECTED, GroupStatistics, check_options


def opo_advantages(
    scores: Tensor,  # (S,) float, int or bool
    lengths: Tensor,  # (S,) float or int, trained tokens of each row, >= 0
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    statistics: GroupStatistics = CORRECTED,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """Scores relative to the mean of their group weighted by length.

    The same, slowly: `scores[i] - (lengths * scores)[g].sum() / lengths[g].sum()` with `g = group == group[i]`.

    Of `statistics` only `singleton` matters. A group without a token has no baseline and gives 0.
    Statistics in float64, result rounded once; the order of the rows changes no bit. Carries no gradient.
    Where values are checked raises for scores and lengths that are not finite and for negative lengths.
    Source: OPO (arXiv 2505.23585): the optimal baseline with the squared gradient norm taken proportional to the length.
    """
    function = "opo_advantages"
    check_options(function, None, statistics)
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    weights = arguments.scores(function, "lengths", lengths, counted)
    if weights.shape[0] and checks.values_wanted(weights) and weights.amin().item() < 0:
        arguments.fail_at(function, "lengths", weights < 0, ">= 0", "a negative one", "count the trained tokens of each row")
    labels = arguments.labels(function, "group", group, counted)
    plain = moments(values, counted, labels, ddof=1)
    centred = values - plain.mean  # first, so that a constant group gives exactly 0
    total = moments(weights, counted, labels, ddof=1).mean
    shift = moments(weights * centred, counted, labels, ddof=1).mean / torch.where(total > 0, total, 1.0)
    alone = values if statistics.singleton == "raw" else torch.zeros_like(values)
    advantages = torch.where(plain.count > 1.0, torch.where(total > 0, centred - shift, 0.0), alone)
    return torch.where(counted, advantages, 0.0).to(arguments.result_dtype(scores))
