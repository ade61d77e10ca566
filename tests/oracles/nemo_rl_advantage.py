"""NeMo-RL's advantage estimators: GRPO with and without leave-one-out, GDPO, Reinforce++, raw rewards, GAE, distillation."""

import torch
from torch import Tensor

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import OPENRLHF_WHITENING, GroupStatistics
from gigpo_fast.objective import K1, K2, K3

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case

STATISTICS = GroupStatistics()
_ESTIMATORS = {"k1": K1(), "k2": K2(), "k3": K3(input_clip=20.0, output_clip=10.0)}


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["mask"].bool()
    match config["estimator"].removesuffix("AdvantageEstimator"):
        case "GRPO":
            return _grpo(case, mask)
        case "GDPO":
            return _gdpo(case, mask)
        case "ReinforcePlusPlus":
            return _reinforce(case, mask)
        case "RawReward":
            tokens = inputs["rewards"].unsqueeze(1).expand(mask.shape)
            if config["normalize_advantages"]:
                return _masked(advantage.whiten(tokens, mask, statistics=OPENRLHF_WHITENING), mask)
            return Answer({"advantages": tokens, "returns": None})
        case "GeneralizedAdvantageEstimator" | "Generalized":
            return _gae(case, mask)
        case "OPD":
            return _masked(reward.kl_rewards(inputs["prev_log_probs"], inputs["teacher_log_probs"], mask, coefficient=1.0), mask)
        case other:
            raise Unsupported(f"no function for the estimator {other!r}")


def _grpo(case: Case, mask: Tensor) -> Answer:
    advantages, found = _group(case, case.inputs["rewards"])
    return Answer(
        {
            "advantages": advantages.unsqueeze(1).expand(mask.shape),
            "returns": None,
            "baseline": found.mean.float(),
            "std": found.std.float(),
        }
    )


def _group(case: Case, rewards: Tensor) -> tuple[Tensor, advantage.GroupMoments]:
    config, group = case.config, case.inputs["group"]
    scale = "std" if config["normalize_rewards"] else None
    found = advantage.leave_one_out_moments(rewards, group)
    if not config["use_leave_one_out_baseline"]:
        return advantage.group_advantages(rewards, group, scale=scale, statistics=STATISTICS), advantage.group_moments(rewards, group)
    if scale == "std":
        return advantage.scaled_leave_one_out_advantages(rewards, group), found
    return advantage.leave_one_out_advantages(rewards, group), found


def _gdpo(case: Case, mask: Tensor) -> Answer:
    columns = [case.inputs[name] for name in sorted(case.inputs) if name.startswith("reward_")]
    weights = case.config["reward_weights"] or [1.0] * len(columns)
    total = sum(weight * _group(case, column)[0] for weight, column in zip(weights, columns))
    everyone = torch.ones(len(total), dtype=torch.bool)
    total = advantage.whiten(total, everyone)
    return Answer({"advantages": total.unsqueeze(1).expand(mask.shape), "returns": None})


def _reinforce(case: Case, mask: Tensor) -> Answer:
    config, inputs = case.config, case.inputs
    rewards = inputs["rewards"]
    if config["minus_baseline"]:
        rewards = advantage.group_advantages(rewards, inputs["group"])
    tokens = rewards.unsqueeze(1).expand(mask.shape)
    if config["use_kl_in_reward"]:
        tokens = tokens + _penalty(case, mask)
    return _masked(advantage.whiten(tokens, mask, statistics=OPENRLHF_WHITENING), mask)


def _gae(case: Case, mask: Tensor) -> Answer:
    config, inputs = case.config, case.inputs
    rewards = reward.score_at_last_token(inputs["rewards"], mask)
    if config["use_kl_in_reward"]:
        rewards = rewards + _penalty(case, mask)
    policy, critic = (config[f"gae_lambda_{name}"] for name in ("policy", "value"))
    lam = config["gae_lambda"] if policy is None else policy
    if config["length_adaptive_alpha"]:
        lam = advantage.length_adaptive_lambda(mask, alpha=config["length_adaptive_alpha"])
    options = {"gamma": config["gae_gamma"]}
    advantages = advantage.gae_advantages(rewards, inputs["values"], mask, lam=lam, **options).advantages
    target = config["gae_lambda"] if critic is None else critic
    returns = advantage.gae_advantages(rewards, inputs["values"], mask, lam=target, **options).returns
    if config["normalize_advantages"]:
        advantages = advantage.whiten(advantages, mask)
    return _masked(advantages, mask, returns)


def _penalty(case: Case, mask: Tensor) -> Tensor:
    return reward.kl_rewards(
        case.inputs["log_probs"],
        case.inputs["ref_log_probs"],
        mask,
        coefficient=case.config["kl_coef"],
        estimator=_ESTIMATORS[case.config["kl_type"]],
    )


def _masked(advantages: Tensor, mask: Tensor, returns: Tensor | None = None) -> Answer:
    slack = {"advantages": beyond(mask)} | ({} if returns is None else {"returns": beyond(mask)})
    return Answer({"advantages": advantages, "returns": returns}, slack)


ADAPTER = Adapter(answer, {"advantages": REASON, "returns": REASON})
