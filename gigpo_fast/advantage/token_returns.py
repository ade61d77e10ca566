"""Returns at tokens: the reward to go of REINFORCE and ReMax, and the return of whole turns on a conversation."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .layout import Layout, backward_sum, layout, token_values


def token_returns(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    mask: Tensor,  # the same shape, bool
    *,
    gamma: float = 1.0,
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
    carry: bool = True,
) -> Tensor:  # the same shape, float32, float64 for float64 rewards; 0 where masked
    """The discounted sum of the rewards of each trained token and those after it in its sequence.

    The same, slowly:

        for t in reversed(range(T)):
            returns[:, t] = torch.where(mask[:, t], rewards[:, t] + gamma * running, 0.0)
            running = torch.where(mask[:, t], returns[:, t], running)

    With `carry` masked tokens are no time steps: a trained token is followed by the next trained one. Without, they are time
    steps with reward 0, so every one of them discounts once. Rewards at masked tokens are never read.
    Accumulated in float64 and rounded once. Carries no gradient. Waits for no GPU.
    Raises for gamma outside [0, 1]; where values are checked also for rewards that are not finite.
    Source: REINFORCE; carry is verl's reinforce_plus_plus, no carry OpenRLHF's reinforce.
    """
    function = "token_returns"
    gamma = arguments.discount(function, gamma)
    checks.mask(function, mask)
    values = token_values(function, "rewards", rewards, mask)
    lines = layout(function, mask, sequence_ids)
    returns = lines.back(masked_sum(lines, lines.lay(values), gamma, carry=carry))
    return torch.where(mask, returns, 0.0).to(arguments.result_dtype(rewards))


def turn_returns(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    mask: Tensor,  # the same shape, bool
    *,
    gamma: float,
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
) -> Tensor:  # the same shape, float32, float64 for float64 rewards; 0 where masked
    """The return of each turn of a conversation, at every token of the turn: discounted from turn to turn, not within.

    The same, slowly: `to_tokens(discounted_returns(r, row_of_step, gamma=gamma), ids)` with `ids = step_ids(mask, turns=True)` and
    `r` the reward at the last token of each step.

    A turn is a run of trained tokens. Its reward is the one at its last token; what stands at other tokens is ignored (ROLL's
    convention). Precision and errors as in `token_returns`.
    Source: ROLL's agentic_reinforce.
    """
    function = "turn_returns"
    gamma = arguments.discount(function, gamma)
    checks.mask(function, mask)
    lines = layout(function, mask, sequence_ids)
    ends = lines.mask & ~lines.following(lines.mask.to(torch.float64)).bool()
    values = lines.lay(token_values(function, "rewards", rewards, mask))
    decay = torch.ones_like(values).masked_fill_(ends, gamma)
    returns = lines.back(backward_sum(torch.where(ends, values, 0.0), torch.where(lines.last, 0.0, decay)))
    return torch.where(mask, returns, 0.0).to(arguments.result_dtype(rewards))


def masked_sum(lines: Layout, values: Tensor, decay: Tensor | float, *, carry: bool) -> Tensor:
    """(R, C) discounted sums to the end of each sequence; values are 0 where masked. Masked places are for the caller to blank."""
    own = torch.full_like(values, decay) if isinstance(decay, float) else decay
    if carry:
        own = torch.where(lines.mask, own, 1.0)  # passes on what it gets
    return backward_sum(values, torch.where(lines.last, 0.0, own))
