"""Turn-level credit at the tokens of a conversation: GAE from turn to turn, and MT-GRPO's two regions."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .gae import GAEAdvantages, read_lambda
from .group import group_advantages
from .layout import backward_sum, forward_sum, layout, token_values
from .statistics import TRL, GroupStatistics


def turn_gae_advantages(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    values: Tensor,  # the same shape, float, the critic's value before each token
    mask: Tensor,  # the same shape, bool
    turn_ids: Tensor,  # the same shape, int64, the turn of each trained token: step_ids(mask, turns=True)
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,  # in [0, 1]; a tensor of the same shape: of each turn the one at its first token
    final_values: Tensor | None = None,  # (B,) float: the value after the last turn of a row that was cut off; None: 0
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
) -> GAEAdvantages:  # two of the same shape, float32, float64 for float64 inputs
    """Generalised advantage estimation with a turn as one time step; all tokens of a turn share its advantage.

    The same, slowly, over the turns of a sequence that have trained tokens:

        reward[k] = rewards[mask & (turn_ids == k)].sum();  value[k] = values at the first of these tokens
        delta = reward[k] + gamma * value[k + 1] - value[k];  advantages[k] = delta + gamma * lam * advantages[k + 1]

    `returns` are advantages + the turn's value. Numbers of turns may skip, and need not start at 0; the tokens of a turn stand together
    but for masked ones. Accumulated in float64 and rounded once. Carries no gradient. Waits for no GPU. Errors as in `gae_advantages`.
    Source: AReaL's turn-level GAE.
    """
    function = "turn_gae_advantages"
    gamma = arguments.discount(function, gamma)
    checks.mask(function, mask)
    reward, value = token_values(function, "rewards", rewards, mask), token_values(function, "values", values, mask)
    fix = "step_ids(mask, turns=True) makes them"
    checks.tensor(function, "turn_ids", turn_ids, shape=tuple(mask.shape), dtypes=(torch.int64,), device=mask.device, fix=fix)
    lines = layout(function, mask, sequence_ids)
    decay = gamma * read_lambda(function, lam, mask, lines)
    trained, turn = lines.mask, lines.lay(turn_ids)
    number = lambda flags: flags.to(torch.float64)  # noqa: E731
    own = torch.where(trained, turn + 1, 0).to(torch.float64)  # 0: no turn
    first = lines.previous(number(lines.last), 1.0) == 1.0  # of a line
    # The turn of the next and of the previous trained token: masked ones pass on what they get.
    coming = lines.following(backward_sum(own, number(~trained & ~lines.last)))
    past = lines.previous(forward_sum(own, number(~trained & ~first)), 0.0)
    starts, ends = trained & (past != own), trained & (coming != own)

    total = backward_sum(lines.lay(reward), number(~ends & ~lines.last))
    at_start = torch.where(starts, lines.lay(value), 0.0)
    after = lines.following(backward_sum(at_start, number(~starts & ~lines.last)))
    if final_values is not None:
        checks.tensor(function, "final_values", final_values, shape=(mask.shape[0],), device=mask.device, fix="one value a row")
        if mask.dim() != 2 or sequence_ids is not None:
            checks.fail(function, "final_values", "None for packed tokens", final_values, "add them to the rewards of the last turns")
        turns_left = backward_sum(number(starts), number(~lines.last))
        after = torch.where(starts & (turns_left == 1.0), final_values.detach().to(torch.float64).unsqueeze(1), after)
    delta = torch.where(starts, total + gamma * after - at_start, 0.0)
    found = backward_sum(delta, torch.where(lines.last, 0.0, torch.where(starts, decay, number(~starts))))
    held = number(~starts & ~first)
    advantages = lines.back(forward_sum(torch.where(starts, found, 0.0), held))
    turn_value = lines.back(forward_sum(at_start, held))
    dtype = arguments.result_dtype(rewards, values)
    rounded = torch.where(mask, advantages, 0.0).to(dtype)
    return GAEAdvantages(rounded, torch.where(mask, advantages + turn_value, 0.0).to(dtype))


def mt_grpo_advantages(
    turn_rewards: Tensor,  # (B,) float, what the tool calls earned
    outcome_rewards: Tensor,  # (B,) float, what the answer earned
    group: Tensor | list,  # (B,) labels, the prompt of each row
    mask: Tensor,  # (B, T) bool
    first_result: Tensor,  # (B,) int64, the place of the first token of the first tool result; -1 = none
    *,
    coefficient: float = 1.0,
    statistics: GroupStatistics = TRL,
) -> Tensor:  # (B, T) float32, float64 for float64 rewards; 0 where masked
    """Two regions of a row with a tool call: before its result the turn's reward counts too, from there on the outcome alone.

    The same, slowly, with z the standardised rewards within the group:

        advantages = z(outcome) + coefficient * z(turn) * (position < first_result)     # rows with a result
        advantages = z(turn + outcome)                                                   # rows without

    Statistics in float64, n - 1, eps 1e-4, rounded once. Carries no gradient. Waits for no GPU. Under value checks raises for rewards that
    are not finite. Source: MT-GRPO (arXiv 2505.11821), the authors' code.
    """
    function = "mt_grpo_advantages"
    coefficient = checks.number(function, "coefficient", coefficient, fix="1.0 is the authors'")
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a conversation")
    checks.mask(function, mask)
    rows = (mask.shape[0],)
    for name, value in (("turn_rewards", turn_rewards), ("outcome_rewards", outcome_rewards)):
        checks.tensor(function, name, value, shape=rows, device=mask.device, fix="one reward a row")
    fix = "the first token of the first tool result, -1 in rows without one"
    checks.tensor(function, "first_result", first_result, shape=rows, dtypes=(torch.int64,), device=mask.device, fix=fix)
    wide = [value.detach().to(torch.float64) for value in (turn_rewards, outcome_rewards)]
    turn, outcome, both = (
        group_advantages(value, group, scale="std", statistics=statistics).unsqueeze(1) for value in (*wide, wide[0] + wide[1])
    )
    place = torch.arange(mask.shape[1], device=mask.device)
    early, used = place < first_result.unsqueeze(1), (first_result >= 0).unsqueeze(1)
    advantages = torch.where(used, outcome + coefficient * turn * early, both)
    return torch.where(mask, advantages, 0.0).to(arguments.result_dtype(turn_rewards, outcome_rewards))
