"""Rewards for length: how much of a budget an answer used, alone or beside the others of its group."""

import math

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments as labels_of
from ..advantage.moments import moments
from . import arguments


def cosine_length(
    correct: Tensor,  # (S,) bool
    lengths: Tensor,  # (S,) int or float
    *,
    max_length: float,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    clamp: bool = True,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 lengths
    """A reward that moves from one value at length 0 to another at max_length, along half a cosine; right and wrong answers apart.

    The same, slowly, for a right answer: `right[1] + (right[0] - right[1]) * (1 + cos(pi * length / max_length)) / 2`

    By default short right answers get most and short wrong ones least. Beyond max_length the value stays (clamp); the authors'
    code lets the cosine swing back (clamp=False). Their lengths are characters.
    Source: Open-RS (arXiv 2503.16219), get_cosine_scaled_reward; Demystifying Long Chain-of-Thought (arXiv 2502.03373).
    """
    function = "cosine_length"
    most = checks.number(function, "max_length", max_length, above=0.0, fix="the length at which the second value is reached")
    right = arguments.pair(function, "right", right, "the rewards at length 0 and at max_length, for example (1.0, 0.5)")
    wrong = arguments.pair(function, "wrong", wrong, "the rewards at length 0 and at max_length, for example (-1.0, -0.5)")
    counted, size = arguments.rows(function, valid, lengths=lengths)
    good = arguments.flags(function, "correct", correct, counted)
    share = size / most
    wave = (1.0 + torch.cos(math.pi * (share.clamp(max=1.0) if clamp else share))) / 2.0
    value = torch.where(good, right[1] + (right[0] - right[1]) * wave, wrong[1] + (wrong[0] - wrong[1]) * wave)
    return arguments.result(value, counted, lengths)


def soft_overlong(
    lengths: Tensor,  # (S,) int or float
    *,
    max_length: float,
    buffer: float,
    penalty: float = 1.0,
) -> Tensor:  # (S,) float32, float64 for float64 lengths; in [-penalty, 0], to be added to the reward
    """No penalty up to max_length - buffer, growing evenly to the full one at max_length.

    The same, slowly: `-penalty * ((lengths - (max_length - buffer)) / buffer).clamp(0, 1)`

    Source: DAPO (arXiv 2503.14476), Eq. 13 (buffer 4096 of 20480).
    """
    function = "soft_overlong"
    most = checks.number(function, "max_length", max_length, above=0.0, fix="the most tokens a response may have")
    room = checks.number(function, "buffer", buffer, above=0.0, fix="DAPO: 4096 of 20480")
    factor = checks.number(function, "penalty", penalty, at_least=0.0, fix="1.0 is DAPO's")
    counted, size = arguments.rows(function, None, lengths=lengths)
    return arguments.result(-factor * ((size - (most - room)) / room).clamp(0.0, 1.0), counted, lengths)


def soft_length(
    lengths: Tensor,  # (S,) int or float
    budget: Tensor,  # (S,) float, infinity where there is none: difficulty_budget(...)
    *,
    slope: float = 0.002,
) -> Tensor:  # (S,) float32, float64 for float64 lengths; in [0, 1], to multiply the reward by
    """1 within the budget, falling by `slope` with every token beyond it.

    The same, slowly: `(1 - slope * (lengths - budget)).clamp(0, 1)`

    Source: PixelThink (arXiv 2505.23727), 1/500 a token; its bonus for short answers is lost in the clamp at 1.
    """
    function = "soft_length"
    slope = checks.number(function, "slope", slope, at_least=0.0, fix="0.002 is PixelThink's")
    counted, size = arguments.rows(function, None, lengths=lengths)
    checks.tensor(function, "budget", budget, shape=tuple(size.shape), dtypes=checks.FLOATS, device=size.device, fix="one a row")
    excess = (size - budget.detach().to(torch.float64)).clamp(min=0.0)
    return arguments.result((1.0 - slope * excess).clamp(0.0, 1.0), counted, lengths)


def remaining_length(
    lengths: Tensor,  # (S,) int or float
    *,
    max_length: float,
) -> Tensor:  # (S,) float32, float64 for float64 lengths
    """The share of the allowed length that is left: `1 - lengths / max_length`.

    Source: ConciseR (arXiv 2505.21178), gated by `all_of_group`; the formula is not confirmed.
    """
    function = "remaining_length"
    most = checks.number(function, "max_length", max_length, above=0.0, fix="the most tokens a response may have")
    counted, size = arguments.rows(function, None, lengths=lengths)
    return arguments.result(1.0 - size / most, counted, lengths)


def dast_length(
    correct: Tensor,  # (S,) bool
    lengths: Tensor,  # (S,) int or float
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    slope: float = -0.5,
    offset: float = 0.5,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 lengths; to be added to the reward
    """Length against a budget that the group sets: what its right answers needed, or more where few are right.

    The same, slowly, for one group with p its share of right answers:

        budget = p * lengths[correct].mean() + (1 - p) * lengths.max()
        excess = (lengths - budget) / budget
        bonus = torch.where(correct, (slope * excess + offset).clamp(min=0.1), (0.9 * excess - 0.1).clamp(max=-0.1))

    A budget of 0 gives an excess of 0. Source: DAST (arXiv 2503.04472) as in UI-R1's trainer (arXiv 2503.21620).
    """
    function = "dast_length"
    slope = checks.number(function, "slope", slope, fix="-0.5 is UI-R1's")
    offset = checks.number(function, "offset", offset, fix="0.5 is UI-R1's")
    counted, size = arguments.rows(function, valid, lengths=lengths)
    right = arguments.flags(function, "correct", correct, counted)
    own = labels_of.labels(function, "group", group, counted)
    whole, of_right = moments(size, counted, own, ddof=1), moments(size, right, own, ddof=1)
    longest = torch.zeros_like(size).scatter_reduce(0, whole.segment, size, "amax").index_select(0, whole.segment)
    share = of_right.count / whole.count.clamp(min=1.0)
    budget = torch.where(share > 0, share * of_right.mean, 0.0) + (1.0 - share) * longest
    excess = torch.where(budget > 0, (size - budget) / torch.where(budget > 0, budget, 1.0), 0.0)
    bonus = torch.where(right, (slope * excess + offset).clamp(min=0.1), (0.9 * excess - 0.1).clamp(max=-0.1))
    return arguments.result(bonus, counted, lengths)


def group_length(
    correct: Tensor,  # (S,) bool
    lengths: Tensor,  # (S,) int or float
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 lengths; in [-0.5, 0.5]
    """0.5 for the shortest of the group, -0.5 for the longest; a wrong answer never gains.

    The same, slowly: `x = 0.5 - (lengths - shortest) / (longest - shortest); reward = x if correct else min(x, 0)`

    Where all have the same length it is 0. Source: Kimi k1.5 (arXiv 2501.12599), the length reward; open-r1's len_reward.
    """
    function = "group_length"
    counted, size = arguments.rows(function, valid, lengths=lengths)
    right = arguments.flags(function, "correct", correct, counted)
    found = moments(size, counted, labels_of.labels(function, "group", group, counted), ddof=1)
    ends = []
    for fill, how in ((math.inf, "amin"), (-math.inf, "amax")):
        ends.append(torch.full_like(size, fill).scatter_reduce(0, found.segment, torch.where(counted, size, fill), how))
    low, high = (end.index_select(0, found.segment) for end in ends)
    spread = torch.where(high > low, high - low, 1.0)
    value = torch.where(high > low, 0.5 - (size - low) / spread, 0.0)
    return arguments.result(torch.where(right, value, value.clamp(max=0.0)), counted, lengths)
