"""ROLL's agentic rewards (GiGPO, step_reinforce, GRPO), token advantages, reward normaliser and KL estimators."""

import torch
from torch import Tensor

from gigpo_fast import advantage
from gigpo_fast.advantage import ROLL
from gigpo_fast.objective import K1, K2, K3, AbsoluteKL

from . import estimators
from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case

_ESTIMATORS = {"kl": K1(), "abs": AbsoluteKL(), "mse": K2(), "k3": K3(input_clip=None, output_clip=10.0)}


def answer(case: Case) -> Answer:
    config = case.config
    match config["stage"]:
        case "compute_approx_kl":
            found = estimators.value_and_gradient(case, _ESTIMATORS[config["kl_penalty"]])
            outside = beyond(case.inputs["mask"])
            return Answer(found.outputs, {"kl": outside, "grad_log_probs_of_sum": outside})
        case "rlvr reward_norm":
            rewards = case.inputs["rewards"]
            group = torch.arange(rewards.shape[0]) // config["n_sample"]
            return Answer({"rewards": _normalise(rewards, group, config["norm_mean_type"], config["norm_std_type"])})
        case "agentic_compute_advantage":
            return _tokens(case)
    return _rewards(case)


def _normalise(values: Tensor, group: Tensor | list, mean: str | None, std: str | None) -> Tensor:
    return advantage.normalise(values, group, mean_over=mean, std_over=std, statistics=ROLL)


def _rewards(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    levels = config["norm_mean_type_in_force"], config["norm_std_type_in_force"]
    group = inputs["traj_group_id"]
    returns = advantage.discounted_returns(
        torch.tensor(inputs["step_scores"]), inputs["traj_id"], gamma=config["step_reward_gamma"], step=inputs["step"]
    )
    episode = None if inputs["episode_scores"] is None else torch.tensor(inputs["episode_scores"])
    outputs = {}
    match config["adv_estimator"]:
        case "gigpo":
            # Whatever the episode part is compared with, a step is compared with its state's group.
            by_state = {"identity": (None, None), "mean": ("group", None), "mean_std": ("group", "group")}[config["method"]]
            whole, steps = _normalise(episode, group, *levels), _normalise(returns, inputs["state_hash"], *by_state)
            total = config["episode_reward_weight"] * whole + config["step_reward_weight"] * steps
            outputs = {"step_rewards": returns, "episode_rewards_norm": whole, "step_rewards_norm": steps}
        case "step_reinforce":
            total, outputs = _normalise(returns, group, *levels), {"step_rewards": returns}
        case "grpo":
            total = _normalise(_tensor(inputs["scores"]).sum(-1) if inputs["scores"] is not None else episode, group, *levels)
        case other:
            raise Unsupported(f"no function for the estimator {other!r}")
    if config["reward_clip"] is not None:
        total = total.clamp(-config["reward_clip"], config["reward_clip"])
    return Answer({"response_level_rewards": total, **outputs})


def _tensor(value: Tensor | list) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _tokens(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rewards, mask = inputs["token_level_rewards"], inputs["mask"]
    if config["whiten_rewards"]:
        rewards = advantage.whiten(rewards, mask)
    gamma = config["gamma"]
    match config["adv_estimator"]:
        case "gae":  # ROLL's GAE does not look at the mask
            everywhere = torch.ones_like(mask)
            advantages, returns = advantage.gae_advantages(rewards, inputs["values"], everywhere, gamma=gamma, lam=config["lambd"])
        case "agentic_reinforce":
            advantages = returns = advantage.turn_returns(rewards, mask, gamma=gamma)
        case _:
            advantages = returns = advantage.token_returns(rewards, mask, gamma=gamma, carry=False)
    raw = advantages
    if config["whiten_advantages"]:
        advantages = advantage.whiten(advantages, mask)
    if config["advantage_clip"] is not None:
        advantages = advantages.clamp(-config["advantage_clip"], config["advantage_clip"])
    outside = beyond(mask)
    return Answer(
        {"advantages": advantages, "returns": returns, "raw_advantages": raw},
        {"advantages": outside, "returns": outside, "raw_advantages": outside},
    )


ADAPTER = Adapter(
    answer,
    dict.fromkeys(("advantages", "returns", "raw_advantages", "kl", "grad_log_probs_of_sum"), REASON),
    excluded=dict.fromkeys(
        ("reward_norm/batch/group", "reward_norm/None/group"), "the peer's answer is 20 rewards broadcast over 5 groups, shape (5, 20)"
    ),
)
