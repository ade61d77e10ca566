"""AReaL's Normalization, KL estimators and _compute_advantages."""

import torch
from torch import Tensor

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import GroupStatistics
from gigpo_fast.objective import K1, K2, K3

from . import estimators
from .adapter import Adapter, Answer
from .masked import REASON, beyond
from .tensors import Case

_ESTIMATORS = {"k1": K1(), "k2": K2(), "k3": K3(input_clip=None)}


def answer(case: Case) -> Answer:
    match case.config.get("function"):
        case "Normalization":
            values, mask = case.inputs["x"], case.inputs["mask"]
            mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
            # With nothing to count AReaL returns what came.
            return Answer({"y": _normalise(case.config, values, mask)}, {"y": beyond(mask)})
        case "KLEstimator":
            estimator = _ESTIMATORS[case.config["kl_estimator"]]
            return estimators.value_and_gradient(case, estimators.Clamped(estimator) if case.config["apply_clamp"] else estimator)
    return _advantages(case)


def _normalise(config: dict, values: Tensor, mask: Tensor) -> Tensor:
    """Rows, or tokens with every row's tokens in one group; groups are consecutive rows."""
    group = torch.arange(values.shape[0]) // config["group_size"]
    group = group if values.dim() == 1 else group.unsqueeze(1).expand(values.shape)
    alone = "raw" if config["mean_leave1out"] or config["mean_level"] is None else "zero"
    return advantage.normalise(
        values.flatten(),
        group.flatten(),
        mean_over=config["mean_level"],
        std_over=config["std_level"],
        leave_one_out=config["mean_leave1out"],
        around_mean=True,
        statistics=GroupStatistics(
            count="row", singleton=alone, zero_variance="divide", eps=config["eps"], ddof=1 if config["std_unbiased"] else 0
        ),
        valid=mask.flatten(),
    ).view(values.shape)


def _advantages(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask, log_probs = inputs["loss_mask"].roll(-1, 1).bool(), inputs["log_probs"].roll(-1, 1)
    mask[:, -1] = False
    scores = ((inputs["rewards"] + config["reward_bias"]) * config["reward_scaling"]).clamp(-config["reward_clip"], config["reward_clip"])
    if config["reward_norm"] is not None:
        scores = _normalise(config["reward_norm"], scores, torch.ones_like(scores, dtype=torch.bool))
    penalty = reward.kl_rewards(
        log_probs,
        inputs["ref_log_probs"],
        mask,
        coefficient=config["kl_ctl"],
        estimator=estimators.Clamped(_ESTIMATORS[config["kl_estimator"]]),
    )
    place = (inputs["attention_mask"].sum(1) - 2).clamp(min=0)
    rewards = penalty.scatter_add(1, place.unsqueeze(1), scores.unsqueeze(1))
    values = torch.zeros_like(rewards) if inputs["values"] is None else inputs["values"]
    whole = inputs["attention_mask"].all(1)  # cut off at the longest length: the critic says what would have come
    advantages, returns = advantage.gae_advantages(
        rewards, values, mask, final_values=torch.where(whole, values[:, -1], 0.0), gamma=config["discount"], lam=config["gae_lambda"]
    )
    if config["adv_norm"] is not None:
        advantages = _normalise(config["adv_norm"], advantages, mask)
    outside = beyond(mask)
    return Answer(
        {"advantages": advantages, "returns": returns, "kl_rewards": penalty, "tot_rewards": rewards, "loss_mask": mask.float()},
        dict.fromkeys(("advantages", "returns", "kl_rewards", "tot_rewards"), outside),
    )


ADAPTER = Adapter(answer, dict.fromkeys(("y", "advantages", "returns", "kl_rewards", "tot_rewards"), REASON))
