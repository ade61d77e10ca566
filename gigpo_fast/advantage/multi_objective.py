"""Several rewards a response: each normalised in its group, then added, so that none drowns in another's scale."""

import torch
from torch import Tensor

from .. import checks
from ..arrays import is_array
from . import arguments
from .group import group_advantages
from .statistics import CORRECTED, GroupStatistics, check_options
from .whitening import VERL_WHITENING, Whitening, check_whitening, whiten


def normalised_sum(
    rewards: Tensor,  # (S, K) float, int or bool, reward k of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    weights: Tensor | list | None = None,  # (K,) float; None: all 1
    scale: str | None = "std",
    statistics: GroupStatistics = CORRECTED,
    valid: Tensor | None = None,  # (S,) or (S, K) bool: which rows, or which single rewards, exist
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where nothing is valid
    """The weighted sum of `group_advantages` of every reward.

    The same, slowly: `sum(weights[k] * group_advantages(rewards[:, k], group, scale="std") for k in range(K))`

    A reward that a row does not have (valid[i, k] False) is outside that reward's statistics and adds nothing.
    Precision and errors as in `group_advantages`; the sum is taken in float64.
    Source: multi-objective GRPO with the norm inside, the first step of GDPO (arXiv 2601.05242), DanceGRPO's video rewards.
    """
    function = "normalised_sum"
    check_options(function, scale, statistics)
    checks.tensor(function, "rewards", rewards, shape=(None, None), fix="pass one column a reward")
    columns = rewards.shape[1]
    factors = weight_vector(function, weights, columns, rewards.device)
    if valid is None:
        each = torch.ones(rewards.shape, dtype=torch.bool, device=rewards.device)
    else:
        checks.mask(function, valid, name="valid")
        checks.mask(function, valid, tuple(rewards.shape if valid.dim() == 2 else rewards.shape[:1]), rewards.device, name="valid")
        each = valid if valid.dim() == 2 else valid.unsqueeze(1).expand(rewards.shape)
    known = arguments.labels(function, "group", group, each.any(1))
    wide = torch.where(each, rewards.detach(), 0).to(torch.float64)
    total = torch.zeros(rewards.shape[0], dtype=torch.float64, device=rewards.device)
    for k in range(columns):
        total = total + factors[k] * group_advantages(wide[:, k], known, scale=scale, statistics=statistics, valid=each[:, k])
    return total.to(arguments.result_dtype(rewards))


def gdpo_advantages(
    rewards: Tensor,  # (S, K) float, int or bool, reward k of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    weights: Tensor | list | None = None,  # (K,) float; None: all 1
    scale: str | None = "std",
    statistics: GroupStatistics = CORRECTED,
    whitening: Whitening = VERL_WHITENING,
    valid: Tensor | None = None,  # (S,) or (S, K) bool
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where not valid
    """Every reward normalised in its group, summed, and the sum whitened over the rows of the batch.

    The same, slowly: `whiten(normalised_sum(rewards, group), valid)`

    The batch spans the ranks of process_group. To whiten over tokens instead of rows, as verl does, compose:
    `whiten(to_tokens(normalised_sum(rewards, group), step_ids), step_ids >= 0)`.
    Source: GDPO (arXiv 2601.05242). TRL whitens rows with Whitening(eps=1e-4, eps_in="deviation").
    """
    check_whitening("gdpo_advantages", whitening, "whitening")
    total = normalised_sum(rewards, group, weights=weights, scale=scale, statistics=statistics, valid=valid)
    rows = torch.ones_like(total, dtype=torch.bool) if valid is None else valid.any(1) if valid.dim() == 2 else valid
    return whiten(total, rows, statistics=whitening, process_group=process_group)


def weight_vector(function: str, weights: Tensor | list | None, size: int, device: torch.device) -> Tensor:
    """(K,) float64."""
    if weights is None:
        return torch.ones(size, dtype=torch.float64, device=device)
    fix = "pass one weight a reward, or None for all 1"
    if is_array(weights):
        weights = weights.tolist()
    if isinstance(weights, (list, tuple)):
        numbers = [checks.number(function, "weights", weight, fix=fix) for weight in weights]
        weights = torch.tensor(numbers, dtype=torch.float64, device=device)
    checks.tensor(function, "weights", weights, shape=(size,), dtypes=checks.FLOATS, device=device, fix=fix)
    return weights.detach().to(torch.float64)
