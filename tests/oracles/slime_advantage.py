"""slime's reward post-processing and its advantages: packed samples, one after the other."""

import torch
from torch import Tensor

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import GroupStatistics
from gigpo_fast.objective import K1, K2, K3

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case

DIVIDED = GroupStatistics(zero_variance="divide")
_ESTIMATORS = {"k1": K1(), "k2": K2(), "k3": K3(input_clip=None), "low_var_kl": K3(input_clip=None, output_clip=10.0)}


def answer(case: Case) -> Answer:
    return _post_process(case) if case.config["stage"] == "_post_process_rewards" else _advantages(case)


def _post_process(case: Case) -> Answer:
    config, rewards = case.config, case.inputs["rewards"]
    estimator, size = config["advantage_estimator"], config["n_samples_per_prompt"]
    if estimator == "reinforce_plus_plus":
        return Answer({"rewards": rewards})
    # An incomplete batch is one group to slime.
    whole = rewards.shape[0] == size * config["rollout_batch_size"]
    group = torch.arange(rewards.shape[0]) // size if whole else torch.zeros(rewards.shape[0], dtype=torch.int64)
    scale = "std" if config["grpo_std_normalization"] and estimator in ("grpo", "gspo", "cispo") else None
    if size == 1 and scale == "std":  # the deviation of one number is NaN there
        return Answer({"rewards": torch.full_like(rewards, float("nan"))})
    return Answer({"rewards": advantage.group_advantages(rewards, group, scale=scale, statistics=DIVIDED)})


def _advantages(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    lengths = torch.tensor(inputs["lengths"])
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mask, everywhere = inputs["mask"].bool(), torch.ones(len(sequence), dtype=torch.bool)
    same = inputs["rewards"][sequence]
    penalty = torch.zeros_like(same)
    if config["kl_coef"] and inputs["log_probs"] is not None:
        penalty = reward.kl_rewards(
            inputs["log_probs"],
            inputs["ref_log_probs"],
            everywhere,
            coefficient=config["kl_coef"],
            estimator=_ESTIMATORS[config["kl_loss_type"]],
        )
    match config["advantage_estimator"]:
        case "grpo" | "gspo" | "cispo":
            advantages = returns = same
        case "reinforce_plus_plus_baseline":
            advantages = returns = same + penalty
        case "reinforce_plus_plus":  # the penalty of masked tokens is left out, but they take their time
            trained = torch.nn.utils.rnn.pad_sequence(mask.split(inputs["lengths"]), batch_first=True)
            placed = reward.score_at_last_token(inputs["rewards"], trained)
            rewards = torch.where(mask, penalty, 0.0) + torch.cat([row[:length] for row, length in zip(placed, inputs["lengths"])])
            advantages = returns = advantage.token_returns(rewards, everywhere, gamma=config["gamma"], sequence_ids=sequence)
        case "ppo":  # slime's GAE does not look at the mask
            rewards = penalty + _at_ends(inputs["rewards"], lengths)
            advantages, returns = advantage.gae_advantages(
                rewards, inputs["values"], everywhere, gamma=config["gamma"], lam=config["lambd"], sequence_ids=sequence
            )
        case other:
            raise Unsupported(f"no function for the estimator {other!r}")
    if config["use_opd"]:  # on-policy distillation
        advantages = advantages + reward.kl_rewards(
            inputs["log_probs"], inputs["teacher_log_probs"], everywhere, coefficient=config["opd_kl_coef"]
        )
    slack = {}
    if config["normalize_advantages"]:
        advantages, slack = advantage.whiten(advantages, mask), {"advantages": beyond(mask)}
    return Answer({"advantages": advantages, "returns": returns}, slack)


def _at_ends(scores: Tensor, lengths: Tensor) -> Tensor:
    ends = lengths.cumsum(0) - 1
    return torch.zeros(int(lengths.sum()), dtype=scores.dtype).scatter(0, ends, scores)


ADAPTER = Adapter(answer, {"advantages": REASON})
