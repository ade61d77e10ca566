"""verl's advantage estimators (core_algos): token-level rewards and prompt ids to one advantage a token."""

from torch import Tensor

from gigpo_fast import advantage
from gigpo_fast.advantage import GroupStatistics

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case

# A lone row passes its raw score on, a constant group is divided by eps.
VERL = GroupStatistics(singleton="raw", zero_variance="divide")


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rewards, mask = inputs["token_level_rewards"], inputs["mask"].bool()
    scores, group = rewards.sum(-1), inputs.get("group")
    scale = "std" if config["norm_adv_by_std_in_grpo"] else None
    match config["estimator"]:
        case "grpo" | "grpo_vectorized":
            rows = advantage.group_advantages(scores, group, scale=scale, statistics=VERL)
        case "grpo_passk":
            rows = advantage.max_at_k_advantages(scores, group, scale=scale, statistics=VERL)
        case "rloo":
            rows = advantage.leave_one_out_advantages(scores, group, statistics=VERL)
        case "opo":
            rows = advantage.opo_advantages(scores, inputs["mask"].sum(-1), group, statistics=VERL)
        case "gpg":
            rows = advantage.gpg_advantages(scores, group, rescale="nonzero_scores", singleton="raw")
        case _:
            return _of_tokens(case, rewards, mask, scores)
    tokens = advantage.to_tokens(rows, advantage.step_ids(mask))
    return Answer({"advantages": tokens, "returns": tokens})  # without a critic verl returns the advantages twice


def _of_tokens(case: Case, rewards: Tensor, mask: Tensor, scores: Tensor) -> Answer:
    config, inputs = case.config, case.inputs
    match config["estimator"]:
        case "reinforce_plus_plus":
            returns = advantage.token_returns(rewards, mask, gamma=config["gamma"])
            tokens = advantage.reinforce_plus_plus_advantages(rewards, mask, gamma=config["gamma"])
        case "reinforce_plus_plus_baseline":
            ids = advantage.step_ids(mask)
            returns = tokens = advantage.reinforce_plus_plus_baseline_advantages(scores, inputs["group"], ids, statistics=VERL)
        case "remax":
            returns = advantage.token_returns(rewards, mask)
            tokens = advantage.remax_advantages(rewards, inputs["reward_baselines"], mask)
        case "gae":
            estimate = advantage.gae_advantages(rewards, inputs["values"], mask, gamma=config["gamma"], lam=config["lam"])
            returns, tokens = estimate.returns, advantage.whiten(estimate.advantages, mask)
        case "optimal_token_baseline" | "tir_optimal_token_baseline" as name:
            returns = advantage.token_returns(rewards, mask)
            tokens = advantage.optimal_token_baseline_advantages(
                rewards,
                inputs["group"],
                inputs["old_log_probs"],
                inputs["sum_pi_squared"],
                mask,
                count_trained_tokens=name.startswith("tir"),
            )
        case other:
            raise Unsupported(f"no function for the estimator {other!r}")
    outside = beyond(mask)
    return Answer({"advantages": tokens, "returns": returns}, {"advantages": outside, "returns": outside})


ADAPTER = Adapter(answer, {"advantages": REASON, "returns": REASON})
