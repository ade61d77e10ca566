"""GPG: group-centred scores, enlarged by the share of the batch that teaches nothing."""

import torch
from torch import Tensor

from .. import checks
from ..collectives import reduce_in_place
from . import arguments
from .moments import moments

_RESCALE = (None, "informative_groups", "nonzero_scores")


def gpg_advantages(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    normaliser: float = 1.0,
    rescale: str | None = "informative_groups",
    singleton: str = "zero",
    valid: Tensor | None = None,  # (S,) bool
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """alpha (score - group mean) / F, with alpha = rows / rows that carry a gradient.

    The same, slowly:

        centred = scores - torch.stack([scores[group == g].mean() for g in group])
        informative = torch.stack([(scores[group == g] != scores[group == g][0]).any() for g in group])
        advantages = S / informative.sum() * centred / normaliser

    rescale: "informative_groups" counts the rows of groups whose scores are not all equal (the paper); "nonzero_scores" counts the
    rows whose score is not 0 (verl's code); None leaves alpha 1. Counts span the ranks of process_group. `singleton`: "zero", or
    "raw" for the score itself, as verl passes it. Where nothing carries a gradient alpha is the number of rows, and the result 0.
    Statistics in float64, result rounded once. Carries no gradient. Where values are checked raises for scores that are not finite.
    Source: GPG (arXiv 2504.02546), F = 1 and alpha = B / (B - M) with M the rows of all-right and all-wrong groups.
    """
    function = "gpg_advantages"
    normaliser = checks.number(function, "normaliser", normaliser, above=0.0, fix="1.0 is the paper's")
    if rescale not in _RESCALE:
        checks.fail(function, "rescale", " or ".join(map(repr, _RESCALE)), rescale, 'the paper\'s is "informative_groups"')
    if singleton not in ("zero", "raw"):
        checks.fail(function, "singleton", "'zero' or 'raw'", singleton, '"zero" is right unless you copy verl')
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    found = moments(values, counted, arguments.labels(function, "group", group, counted), ddof=1)
    centred = values - found.mean
    if singleton == "raw":
        centred = torch.where(found.count > 1.0, centred, values)
    alpha = 1.0
    if rescale is not None:
        carrying = counted & (~found.flat if rescale == "informative_groups" else values != 0.0)
        counts = torch.stack([counted.sum(), carrying.sum()]).to(torch.float64)
        reduce_in_place(counts, process_group)
        alpha = counts[0] / counts[1].clamp(min=1.0)
    return torch.where(counted, alpha * centred / normaliser, 0.0).to(arguments.result_dtype(scores))
