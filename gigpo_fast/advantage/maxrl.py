"""MaxRL: a score relative to its group's mean, in units of that mean."""

import torch
from torch import Tensor

from . import arguments
from .moments import moments


def maxrl_advantages(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """(score - mean) / mean of the group: rare successes weigh as much as the likelihood of success asks for.

    The same, slowly: `(scores[i] - scores[g].mean()) / scores[g].mean()` with `g = group == group[i]`; 0 where the mean is not positive.

    A group of one gives 0. Statistics in float64, result rounded once; the order of the rows changes no bit. Carries no gradient.
    Where values are checked raises for scores that are not finite.
    Source: maximum likelihood reinforcement learning (MaxRL, arXiv 2602.02710), as in prime-rl.
    """
    function = "maxrl_advantages"
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    found = moments(values, counted, arguments.labels(function, "group", group, counted), ddof=1)
    positive = counted & (found.mean > 0.0)
    return torch.where(positive, (values - found.mean) / torch.where(positive, found.mean, 1.0), 0.0).to(arguments.result_dtype(scores))
