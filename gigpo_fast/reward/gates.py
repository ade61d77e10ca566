"""Gates: a reward that counts only where the whole group, or any of it, meets a condition."""

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments as labels_of
from ..advantage.moments import moments
from . import arguments


def all_of_group(
    condition: Tensor,  # (S,) bool, for example rewards > 0.5
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) bool, False where not valid
    """Whether every valid row of the row's group meets the condition: `condition[group == group[i]].all()`."""
    counted, share = _share("all_of_group", condition, group, valid)
    return counted & (share == 1.0)


def any_of_group(
    condition: Tensor,  # (S,) bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) bool, False where not valid
    """Whether any valid row of the row's group meets the condition; `~any_of_group(correct, group)` gates hard groups (KDRL)."""
    counted, share = _share("any_of_group", condition, group, valid)
    return counted & (share > 0.0)


def gated_bonus(
    rewards: Tensor,  # (S,) float, int or bool
    bonus: Tensor,  # (S,) float, int or bool; not read where the gate is shut
    gate: Tensor,  # (S,) bool
    *,
    coefficient: float = 1.0,
) -> Tensor:  # (S,) float32, float64 for float64 rewards or bonus
    """Rewards plus coefficient times a bonus where the gate is open.

    The same, slowly: `rewards + coefficient * torch.where(gate, bonus, 0)`

    ConciseR: bonus=remaining_length(lengths, max_length=...), gate=all_of_group(correct, group). A group that the gate opens has
    equal rewards before, so scale="std" cancels the coefficient there, and skipping of such groups must come after.
    Source: ConciseR (arXiv 2505.21178); its length formula is not confirmed.
    """
    function = "gated_bonus"
    factor = checks.number(function, "coefficient", coefficient, fix="1.0 adds the bonus as it is")
    counted, values = arguments.rows(function, None, rewards=rewards)
    opened = arguments.flags(function, "gate", gate, counted)
    extra = labels_of.scores(function, "bonus", bonus, opened)
    return arguments.result(values + factor * extra, counted, rewards, bonus)


def _share(function: str, condition: Tensor, group: Tensor | list, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    counted = labels_of.validity(function, valid, "condition", condition)
    met = arguments.flags(function, "condition", condition, counted)
    found = moments(met.to(torch.float64), counted, labels_of.labels(function, "group", group, counted), ddof=1)
    return counted, found.mean
