"""Scores against the mean of their group or its soft maximum, raised or lowered by a constant: AsymRE, OPMD, A*-PO."""

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_max
from . import arguments
from .moments import Moments, moments
from .statistics import CORRECTED, GroupStatistics, check_options


def soft_values(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    temperature: float,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """The soft maximum of each row's group, temperature log(mean exp(score / temperature)): V* of A*-PO, a baseline of OPMD.

    The same, slowly: `temperature * (scores[g] / temperature).exp().mean().log()` with `g = group == group[i]`.

    Between the mean (temperature to infinity) and the maximum (to 0). float64 inside, shifted by the largest score, so that nothing
    overflows; the order of the rows changes no bit. Carries no gradient. Where values are checked raises for scores that are not finite.
    Source: A*-PO (arXiv 2505.20686) with n answers of the reference to each prompt, temperature its beta_1.
    """
    function = "soft_values"
    temperature = checks.number(function, "temperature", temperature, above=0.0, fix="A*-PO takes 0.5")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = arguments.labels(function, "group", group, counted)
    found = _soft(values, counted, labels, moments(values, counted, labels, ddof=1), temperature)
    return torch.where(counted, found, 0.0).to(arguments.result_dtype(scores))


def soft_baseline_advantages(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    temperature: float | None = None,
    shift: float = 0.0,
    statistics: GroupStatistics = CORRECTED,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """Scores minus (the mean of their group, or with `temperature` its soft maximum, + shift).

    The same, slowly: `scores[i] - (scores[g].mean() + shift)` with `g = group == group[i]`; `soft_values` in place of the mean.

    A negative shift weighs successes more than failures. Of `statistics` only `singleton` matters: "raw" gives the lone score itself,
    without the shift. Precision and errors as in `soft_values`.
    Source: AsymRE (arXiv 2506.20520) with shift -0.1; OPMD (arXiv 2505.17826), whose baseline is the mean or the soft maximum.
    """
    function = "soft_baseline_advantages"
    check_options(function, None, statistics)
    shift = checks.number(function, "shift", shift, fix="AsymRE takes -0.1")
    if temperature is not None:
        temperature = checks.number(function, "temperature", temperature, above=0.0, fix="None takes the mean")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = arguments.labels(function, "group", group, counted)
    plain = moments(values, counted, labels, ddof=1)
    baseline = plain.mean if temperature is None else _soft(values, counted, labels, plain, temperature)
    alone = values if statistics.singleton == "raw" else torch.zeros_like(values)
    advantages = torch.where(plain.count > 1.0, (values - baseline) - shift, alone)
    return torch.where(counted, advantages, 0.0).to(arguments.result_dtype(scores))


def _soft(values: Tensor, counted: Tensor, labels: Tensor, plain: Moments, temperature: float) -> Tensor:
    """(S,) float64 soft maximum of each row's group."""
    largest = segment_max(torch.where(counted, values, float("-inf")), plain.segment, float("-inf"))[plain.segment]
    largest = torch.where(largest.isfinite(), largest, 0.0)
    near = torch.exp(torch.where(counted, values - largest, 0.0) / temperature)
    return largest + temperature * torch.log(moments(near, counted, labels, ddof=1).mean)
