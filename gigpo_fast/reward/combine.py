"""One reward out of several: the weighted sum, with rewards that some rows do not have."""

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments
from ..advantage.multi_objective import weight_vector
from ..values import all_finite


def weighted_sum(
    rewards: Tensor,  # (S, K) float, int or bool, reward k of each row
    *,
    weights: Tensor | list | None = None,  # (K,) float; None: all 1
    scored: Tensor | None = None,  # (S, K) bool, False where a row has no such reward
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 for a row without any
    """The weighted sum of the rewards that a row has.

    The same, slowly: `(torch.where(scored, rewards, 0) * weights).sum(1)`

    A row without any reward is not scored: pass `valid=scored.any(1)` on to the advantages. The other order, every reward
    normalised in its group before they are added, is `normalised_sum`. In float64, rounded once. Carries no gradient. Under full
    validation raises for rewards that are not finite where scored.
    Source: multi-objective GRPO (sum, then normalise); TRL's reward_weights.
    """
    function = "weighted_sum"
    checks.tensor(function, "rewards", rewards, shape=(None, None), fix="pass one column a reward")
    factors = weight_vector(function, weights, rewards.shape[1], rewards.device)
    if scored is None:
        scored = torch.ones(rewards.shape, dtype=torch.bool, device=rewards.device)
    checks.mask(function, scored, tuple(rewards.shape), rewards.device, name="scored")
    finite = not checks.values_wanted(rewards, scored) or all_finite(rewards)
    values = torch.where(scored, rewards.detach(), 0).to(torch.float64)
    if not finite:
        fix = "set scored=False where a row has no such reward, or correct the reward function"
        arguments.fail_at(function, "rewards", ~values.isfinite().all(1), "finite where scored", "not finite", fix)
    return (values * factors).sum(1).to(arguments.result_dtype(rewards))
