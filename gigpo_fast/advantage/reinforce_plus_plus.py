"""REINFORCE++: returns whitened over all tokens of the batch, with or without a group baseline before."""

import torch
from torch import Tensor

from .. import checks
from .group import group_advantages
from .statistics import CORRECTED, GroupStatistics
from .token_returns import token_returns
from .tokens import to_tokens
from .whitening import VERL_WHITENING, Whitening, check_whitening, whiten


def reinforce_plus_plus_advantages(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    mask: Tensor,  # the same shape, bool
    *,
    gamma: float = 1.0,
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
    carry: bool = True,
    whitening: Whitening = VERL_WHITENING,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # the same shape, float32, float64 for float64 rewards; 0 where masked
    """The reward to go of every token, whitened over the batch.

    The same, slowly: `whiten(token_returns(rewards, mask, gamma=gamma), mask)`

    A penalty for leaving the reference policy belongs into the rewards: `reward.kl_rewards`. The batch spans the ranks of
    process_group. Options, precision and errors as in `token_returns` and `whiten`.
    Source: REINFORCE++ (arXiv 2501.03262), Eq. 5 and 6.
    """
    function = "reinforce_plus_plus_advantages"
    check_whitening(function, whitening, "whitening")
    checks.tensor(function, "rewards", rewards, fix="pass one reward a token")
    returns = token_returns(rewards.to(torch.float64), mask, gamma=gamma, sequence_ids=sequence_ids, carry=carry)
    whitened = whiten(returns, mask, statistics=whitening, process_group=process_group)
    return whitened if rewards.dtype == torch.float64 else whitened.to(torch.float32)


def reinforce_plus_plus_baseline_advantages(
    scores: Tensor,  # (S,) float, int or bool, score of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int
    step_ids: Tensor,  # (B, T) or (N,) int64, row of each trained token, -1 = none: advantage.step_ids(mask)
    *,
    statistics: GroupStatistics = CORRECTED,
    trajectory: Tensor | list | None = None,  # (S,); None: every row is a trajectory
    valid: Tensor | None = None,  # (S,) bool
    whitening: Whitening = VERL_WHITENING,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # the shape of step_ids, float32, float64 for float64 scores; 0 where step_ids is -1 or the row is not valid
    """Scores minus the mean of their group, at every token of their row, whitened over the tokens of the batch.

    The same, slowly: `whiten(to_tokens(group_advantages(scores, group), step_ids), step_ids >= 0)`

    Tokens of rows that are not valid are masked: outside mean and variance. Options and errors as in `group_advantages` and `whiten`.
    Source: REINFORCE++ (arXiv 2501.03262), REINFORCE++-baseline.
    """
    check_whitening("reinforce_plus_plus_baseline_advantages", whitening, "whitening")
    rows = group_advantages(scores, group, statistics=statistics, trajectory=trajectory, valid=valid)
    tokens = to_tokens(rows, step_ids)
    trained = step_ids >= 0
    if valid is not None:
        trained = trained & to_tokens(valid.to(torch.float32), step_ids).bool()
    return whiten(tokens, trained, statistics=whitening, process_group=process_group)
