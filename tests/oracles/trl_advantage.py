"""TRL's rewards to advantages (GRPOTrainer, RLOOTrainer): one column a reward function, NaN where a function did not answer."""

import torch
from torch import Tensor

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import TRL, Whitening

from .adapter import Adapter, Answer
from .tensors import Case

ROWS = Whitening(eps=1e-4, eps_in="deviation")


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rewards = inputs["rewards_per_func"]
    scored = ~rewards.isnan()
    valid = scored.any(1)
    group = torch.arange(rewards.shape[0]) // config["num_generations"]
    weights = inputs["reward_weights"]
    if config["trainer"] == "RLOOTrainer":
        return _rloo(case, rewards, scored, valid, group, weights)

    if config["multi_objective_aggregation"] == "normalize_then_sum":
        scores = reward.normalised_sum(rewards, group, weights=weights, statistics=TRL, valid=scored)
        advantages = advantage.gdpo_advantages(rewards, group, weights=weights, statistics=TRL, whitening=ROWS, valid=scored)
        level = "batch"
    else:
        scores = reward.weighted_sum(rewards, weights=weights, scored=scored)
        level = config["scale_rewards"]
        over = None if level == "none" else level
        advantages = advantage.normalise(scores, group, std_over=over, statistics=TRL, valid=valid)
    spread = advantage.group_moments(scores, group if level != "batch" else torch.zeros_like(group), valid=valid)
    std = _seen_by_all(spread.std, spread.count, group if level != "batch" else torch.zeros_like(group))
    if config["num_generations"] == 1 and level != "batch":
        std = spread.std
    return Answer(
        {
            "advantages": advantages,
            "rewards": torch.where(valid, scores, float("nan")),
            "std_rewards": std.float(),
            "is_std_zero": std == 0,
        }
    )


def _rloo(case: Case, rewards: Tensor, scored: Tensor, valid: Tensor, group: Tensor, weights: Tensor) -> Answer:
    config, inputs = case.config, case.inputs
    scores = reward.weighted_sum(rewards, weights=weights, scored=scored)
    if config["reward_clip_range"] is not None:
        scores = scores.clamp(*config["reward_clip_range"])
    if config["beta"] != 0.0:
        penalty = reward.kl_rewards(inputs["old_log_probs"], inputs["ref_log_probs"], inputs["completion_mask"], coefficient=config["beta"])
        scores = scores + penalty.sum(1)
    advantages = advantage.leave_one_out_advantages(scores, group, valid=valid)
    if config["normalize_advantages"]:
        compared = valid & (advantage.group_moments(scores, group, valid=valid).count > 1)  # a row alone is outside TRL's batch
        advantages = advantage.whiten(advantages, compared, statistics=ROWS)
    return Answer({"advantages": advantages, "rewards": torch.where(valid, scores, float("nan"))})


def _seen_by_all(std: Tensor, count: Tensor, group: Tensor) -> Tensor:
    """The group's value at its unscored rows too."""
    most = torch.zeros_like(count).scatter_reduce(0, group, count, "amax")
    value = torch.zeros_like(std).scatter_reduce(0, group, std, "amax")
    return torch.where(most[group] > 1, value[group], float("nan"))


ADAPTER = Adapter(answer)
