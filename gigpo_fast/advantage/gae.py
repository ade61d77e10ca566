"""Generalised advantage estimation: for trainers that have a critic."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .layout import Layout, layout, token_values
from .token_returns import masked_sum


class GAEAdvantages(NamedTuple):
    """What GAE gives: for the policy, and as the critic's target."""

    advantages: Tensor  # shape of the rewards, 0 where masked
    returns: Tensor  # the same: advantages + values


def gae_advantages(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    values: Tensor,  # the same shape, float, the critic's value before each token
    mask: Tensor,  # the same shape, bool
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,  # in [0, 1]; a tensor of the same shape gives every token its own
    final_values: Tensor | None = None,  # (B,) or the same shape, float: the value after the last trained token; None: 0
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
    carry: bool = True,
) -> GAEAdvantages:  # two of the same shape, float32, float64 for float64 inputs
    """The exponentially weighted sum of temporal-difference errors.

    The same, slowly (all tokens trained):

        for t in reversed(range(T)):
            delta = rewards[:, t] + gamma * following_value - values[:, t]
            advantages[:, t] = delta + gamma * lam * following_advantage
            following_value, following_advantage = values[:, t], advantages[:, t]

    With `carry` masked tokens are no time steps: a trained token is followed by the next trained one (verl, NeMo-RL). Without,
    they are time steps with reward 0 and value 0 (OpenRLHF). What follows the last trained token of a sequence is worth
    `final_values` (AReaL does so where a response was cut off), else nothing. Lambda of the critic's target apart from that of
    the policy (VAPO's decoupled GAE): call twice. `length_adaptive_lambda` makes the tensor that VAPO uses.
    Whitening is a step of its own: `whiten(result.advantages, mask)`.
    Accumulated in float64 and rounded once. Carries no gradient. Waits for no GPU.
    Raises for gamma or lam outside [0, 1]; where values are checked also for numbers that are not finite.
    Source: GAE (arXiv 1506.02438), Eq. 16.
    """
    function = "gae_advantages"
    gamma = arguments.discount(function, gamma)
    checks.mask(function, mask)
    reward, value = token_values(function, "rewards", rewards, mask), token_values(function, "values", values, mask)
    lines = layout(function, mask, sequence_ids)
    decay = gamma * read_lambda(function, lam, mask, lines, carry=carry)
    here = lines.lay(value)
    following = lines.following(here)
    if carry:  # the value of the next trained token
        following = lines.following(masked_sum(lines, here, 0.0, carry=True))
    if final_values is not None:
        later = masked_sum(lines, lines.mask.to(torch.float64), 1.0, carry=True)
        following = torch.where(lines.mask & (later == 1.0), lines.lay(_final(function, final_values, mask)), following)
    error = torch.where(lines.mask | (not carry), lines.lay(reward) + gamma * following - here, 0.0)
    advantages = lines.back(masked_sum(lines, error, decay, carry=carry))
    dtype = arguments.result_dtype(rewards, values)
    rounded = torch.where(mask, advantages, 0.0).to(dtype)
    return GAEAdvantages(rounded, torch.where(mask, advantages + value, 0.0).to(dtype))


def length_adaptive_lambda(
    mask: Tensor,  # (B, T) bool
    *,
    alpha: float,
) -> Tensor:  # (B, T) float64
    """lambda = 1 - 1 / (alpha n) for a row of n trained tokens, so that short and long rows see their last reward equally far.

    The same, slowly: `(1 - 1 / (alpha * mask.sum(1, keepdim=True))).expand(mask.shape)`, at least 0; 0 for a row without tokens.
    Source: VAPO (arXiv 2504.05118), Eq. 9.
    """
    function = "length_adaptive_lambda"
    alpha = checks.number(function, "alpha", alpha, above=0.0, fix="VAPO uses 0.05")
    checks.mask(function, mask)
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a sequence")
    reach = alpha * mask.sum(1, keepdim=True).to(torch.float64)
    return torch.where(reach > 0, 1.0 - reach.reciprocal(), 0.0).clamp(min=0.0).expand(mask.shape)


def _final(function: str, value: Tensor, mask: Tensor) -> Tensor:
    if isinstance(value, Tensor) and value.dim() == 1 and mask.dim() == 2:
        checks.tensor(function, "final_values", value, shape=mask.shape[:1], device=mask.device, fix="one value a row")
        value = value.unsqueeze(1).expand(mask.shape)
    return token_values(function, "final_values", value, mask)


def read_lambda(function: str, lam: float | Tensor, mask: Tensor, lines: Layout, *, carry: bool = True) -> Tensor | float:
    """A number, or float64 as the lines lie, 0 where masked."""
    fix = "pass a number between 0 and 1, for example lam=0.95"
    if not isinstance(lam, Tensor):
        number = checks.number(function, "lam", lam, at_least=0.0, fix=fix)
        if number > 1.0:
            checks.fail(function, "lam", "in [0, 1]", lam, fix)
        return number
    checks.tensor(function, "lam", lam, shape=tuple(mask.shape), dtypes=checks.FLOATS, device=mask.device, fix="one lambda a token")
    if not carry:  # a masked token would be a time step with a lambda of its own
        checks.fail(function, "lam", "a number with carry=False", lam, "pass carry=True, or one lambda for all tokens")
    numbers = torch.where(mask, lam.detach(), 0.0).to(torch.float64)
    if checks.values_wanted(numbers) and not bool(((numbers >= 0) & (numbers <= 1)).all()):
        checks.fail(function, "lam", "in [0, 1]", f"numbers from {float(numbers.min())} to {float(numbers.max())}", fix)
    return lines.lay(numbers)
