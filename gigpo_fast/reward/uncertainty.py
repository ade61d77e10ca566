"""How sure the policy was, and the length budget that follows from it."""

import math

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments as labels_of
from ..values import check_not_nan
from . import arguments


def top_two_uncertainty(
    top_log_probs: Tensor,  # (B, T, 2) float, log-probs of the two most likely tokens
    mask: Tensor,  # (B, T) bool, tokens that have both
) -> Tensor:  # (B,) float32, float64 for float64 log-probs; 0 for a row without tokens
    """One minus the gap between the two most likely tokens, averaged over a response.

    The same, slowly: `(1 - (top.exp()[..., 0] - top.exp()[..., 1])).clamp(0, 1)[mask].mean()` row by row.

    Source: PixelThink (arXiv 2505.23727).
    """
    function = "top_two_uncertainty"
    checks.mask(function, mask)
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a response")
    fix = "the two largest log-probs of every token"
    checks.tensor(function, "top_log_probs", top_log_probs, shape=(*mask.shape, 2), dtypes=checks.FLOATS, device=mask.device, fix=fix)
    if checks.values_wanted(mask, top_log_probs):
        for log_probs in top_log_probs.unbind(-1):
            check_not_nan(function, "top_log_probs", log_probs, mask)
    probs = torch.where(mask.unsqueeze(-1), top_log_probs.detach(), 0).to(torch.float64).exp()
    doubt = torch.where(mask, (1.0 - (probs[..., 0] - probs[..., 1])).clamp(0.0, 1.0), 0.0)
    return (doubt.sum(1) / mask.sum(1).clamp(min=1)).to(labels_of.result_dtype(top_log_probs))


def difficulty_budget(
    difficulty: Tensor,  # (S,) float or int, of each row's prompt
    uncertainty: Tensor,  # (S,) float, of each row: top_two_uncertainty
    *,
    thresholds: tuple[float, float] = (3.5, 5.0),
    easy: float = 96.0,
    hard: float = 256.0,
    scale: float = 25.0,
) -> Tensor:  # (S,) float32, float64 for float64 difficulty or uncertainty; infinity = no budget
    """How many tokens a prompt deserves: `easy` below the first threshold, none between, hard + scale * uncertainty from the second on.

    Source: PixelThink (arXiv 2505.23727); thresholds and budgets are its code's.
    """
    function = "difficulty_budget"
    low, high = arguments.pair(function, "thresholds", thresholds, "(3.5, 5.0) are PixelThink's")
    if low > high:
        checks.fail(function, "thresholds", "two numbers that do not fall", thresholds, "(3.5, 5.0) are PixelThink's")
    given = {"easy": (easy, "96.0 is PixelThink's"), "hard": (hard, "256.0 is PixelThink's"), "scale": (scale, "25.0 is PixelThink's")}
    easy, hard, scale = (arguments.real(function, name, value, fix) for name, (value, fix) in given.items())
    counted, level, doubt = arguments.rows(function, None, difficulty=difficulty, uncertainty=uncertainty)
    budget = torch.where(
        level >= high, hard + scale * doubt, torch.full_like(level, easy).masked_fill_(level >= low, math.inf)
    )
    return arguments.result(budget, counted, difficulty, uncertainty)
