"""OpenRLHF's experience maker: rewards and a per-token KL to advantages, its KL estimators, and the overlong penalty."""

import torch
from torch import Tensor

from gigpo_fast import advantage, loss, reward
from gigpo_fast.advantage import OPENRLHF, OPENRLHF_WHITENING, VERL
from gigpo_fast.objective import K1, K2, K3, KLPenalty, PolicyObjective, RolloutCorrection, TokenSum

from . import estimators
from .adapter import Adapter, Answer
from .masked import REASON, beyond
from .tensors import Case


def answer(case: Case) -> Answer:
    match case.config.get("function"):
        case "compute_approx_kl":
            return _kl(case)
        case "apply_overlong_penalty":
            config, inputs = case.config, case.inputs
            penalty = reward.soft_overlong(
                inputs["response_length"],
                max_length=config["max_new_tokens"],
                buffer=config["overlong_buffer_len"],
                penalty=config["overlong_penalty_factor"],
            )
            return Answer({"rewards": inputs["rewards"] + penalty})
    return _advantages(case)


def _advantages(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask, rewards = inputs["mask"], inputs["rewards"]
    group = torch.arange(rewards.shape[0]) // config["n_samples_per_prompt"]
    # The recorded KL is the estimate itself; against a reference of 0 the penalty is its negative.
    penalty = reward.kl_rewards(inputs["kl"], torch.zeros_like(inputs["kl"]), mask, coefficient=config["kl_coef"])
    shaped = rewards
    match config["estimator"]:
        case "rloo":
            shaped = advantage.leave_one_out_advantages(rewards, group)
        case "reinforce_baseline" | "dr_grpo":
            shaped = advantage.group_advantages(rewards, group)
        case "group_norm":
            shaped = advantage.group_advantages(rewards, group, scale="std", statistics=OPENRLHF)
        case "flash_reinforce":
            shaped = advantage.normalise(rewards, mean_over="batch", std_over=None, statistics=VERL)
    if config["reward_clip_range"] is not None:
        shaped = shaped.clamp(*config["reward_clip_range"])
    tokens = reward.score_at_last_token(shaped, mask) + penalty
    gamma = config["gamma_in_force"]
    if config["estimator"] == "gae":
        estimate = advantage.gae_advantages(tokens, inputs["values"], mask, gamma=gamma, lam=config["lam"], carry=False)
        advantages, returns = estimate
    else:
        advantages = returns = advantage.token_returns(tokens, mask, gamma=gamma, carry=False)
    if config["estimator"] in ("gae", "reinforce", "reinforce_baseline"):
        advantages = _whitened(advantages, mask, config["no_std_norm"])
    outside = beyond(mask)
    outputs = {"advantages": advantages, "returns": returns, "shaped_return": tokens.sum(1)}
    return Answer(outputs, {"advantages": outside, "returns": outside, "shaped_return": torch.zeros(len(rewards))})


def _whitened(values: Tensor, mask: Tensor, only_mean: bool) -> Tensor:
    if not only_mean:
        return advantage.whiten(values, mask, statistics=OPENRLHF_WHITENING)
    flat = advantage.normalise(values.flatten(), mean_over="batch", std_over=None, valid=mask.flatten())
    return flat.view(mask.shape)


def _kl(case: Case) -> Answer:
    estimator = {"k1": K1(), "k2": K2(), "k3": K3(input_clip=None)}[case.config["kl_estimator"]]
    found = estimators.value_and_gradient(case, estimators.Clamped(estimator))
    if not case.config["unbiased_gradient"]:
        return found
    # The value stays, the gradient is that of k2 times the importance weight, which is at most 10 and a constant.
    log_probs, old = case.inputs["log_probs"].clone().requires_grad_(), case.inputs["old_log_probs"]
    weighting = None if old is None else RolloutCorrection(high=10.0, current=True)
    result = loss.policy_loss(
        log_probs,
        torch.zeros_like(log_probs),
        torch.ones_like(log_probs, dtype=torch.bool),
        ref_log_probs=case.inputs["ref_log_probs"],
        extras=None if old is None else {"rollout_log_probs": old},
        objective=PolicyObjective(divergence=KLPenalty(1.0, K2(), weighting=weighting), aggregation=TokenSum()),
    )
    result.loss.backward()
    return Answer(found.outputs | {"grad_log_probs_of_sum": log_probs.grad})


ADAPTER = Adapter(answer, {"advantages": REASON, "returns": REASON})
