"""What an answer cost: tool calls, tokens, turns, relative to what its group shows to be enough."""

import math

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments as labels_of
from ..advantage.moments import moments
from ..advantage.multi_objective import weight_vector
from . import arguments


def fewest_calls(
    calls: Tensor,  # (S,) int or float, tool calls of each row
    correct: Tensor,  # (S,) bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    known: Tensor | None = None,  # (S,) float, the fewest of earlier epochs for each row's task; infinity where there is none
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32; infinity where nobody was right
    """The fewest tool calls with which a correct answer of the row's group, or an earlier one, managed.

    The same, slowly: `min(calls[j] for j with group[j] == group[i] and correct[j])`

    Source: OTC (arXiv 2504.14870), n; its OTC-GRPO keeps the fewest over all epochs, which is what `known` is for.
    """
    function = "fewest_calls"
    counted, number = arguments.rows(function, valid, calls=calls)
    right = arguments.flags(function, "correct", correct, counted)
    found = moments(number, right, labels_of.labels(function, "group", group, counted), ddof=1)
    infinity = torch.full_like(number, math.inf)
    least = infinity.scatter_reduce(0, found.segment, torch.where(right, number, math.inf), "amin").index_select(0, found.segment)
    if known is not None:
        checks.tensor(function, "known", known, shape=tuple(counted.shape), dtypes=checks.FLOATS, device=counted.device, fix="one a row")
        least = torch.minimum(least, known.detach().to(torch.float64))
    return torch.where(counted, least, math.inf).to(torch.float32)


def tool_cost(
    calls: Tensor,  # (S,) int or float, tool calls of each row
    fewest: Tensor | None = None,  # (S,) float, the fewest that are enough; None: unknown (PPO)
    *,
    max_calls: int,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 calls; in [0, 1]
    """How thrifty an answer was, 1 at the fewest calls that are enough; multiply the reward for correctness by it.

    The same, slowly, with m = calls, n = fewest, c = max_calls:

        cos(m pi / (2 m + c))                     without `fewest`, and for n = 0
        sin(f pi / (2 n)), f = 2 n m / (m + n)    for n > 0

    Where n is infinite (nobody was right) it is 1: the correctness reward is 0 there.
    Source: OTC (arXiv 2504.14870), Eq. 5 to 7; c is the most calls the setting allows (4 with search, 3 with code).
    """
    function = "tool_cost"
    most = checks.number(function, "max_calls", max_calls, above=0, fix="the most tool calls that the setting allows")
    counted, m = arguments.rows(function, valid, calls=calls)
    unknown = torch.cos(m * math.pi / (2.0 * m + most))
    if fewest is None:
        return arguments.result(unknown, counted, calls)
    checks.tensor(function, "fewest", fewest, shape=tuple(counted.shape), dtypes=checks.FLOATS, device=counted.device, fix="fewest_calls")
    n = torch.where(counted, fewest.detach(), 0).to(torch.float64)
    known = torch.sin(m / torch.where(m + n > 0, m + n, 1.0) * math.pi)
    value = torch.where(n == 0, unknown, known)
    return arguments.result(torch.where(n.isinf(), 1.0, value), counted, calls)


def cost_penalty(
    rewards: Tensor,  # (S,) float, int or bool
    costs: Tensor,  # (S, K) float or int, for example output tokens, input tokens, turns
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    weights: Tensor | list,  # (K,) float
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where not valid
    """The reward less a share of the group's mean reward for every cost, the largest in the group costing the whole share.

    The same, slowly: `rewards - rewards[g].mean() * (weights * costs / costs[g].max(0)).sum(1)`

    A group that fails throughout is not penalised for its length. A cost of which nobody in the group has any is left out.
    Source: prime-rl's length penalty (its weights: 0.25 output tokens, 0.1 input tokens, 0.1 turns).
    """
    function = "cost_penalty"
    counted, values = arguments.rows(function, valid, rewards=rewards)
    checks.tensor(function, "costs", costs, shape=(values.shape[0], None), device=values.device, fix="pass one column a cost")
    share = weight_vector(function, weights, costs.shape[1], values.device)
    own = labels_of.labels(function, "group", group, counted)
    found = moments(values, counted, own, ddof=1)
    total = torch.zeros_like(values)
    for k in range(costs.shape[1]):
        amount = labels_of.scores(function, f"costs[:, {k}]", costs[:, k], counted)
        most = torch.zeros_like(amount).scatter_reduce(0, found.segment, amount, "amax").index_select(0, found.segment)
        total = total + share[k] * amount / torch.where(most > 0, most, 1.0)
    return arguments.result(values - found.mean * total, counted, rewards)
