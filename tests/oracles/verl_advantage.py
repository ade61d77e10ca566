"""verl's advantage estimators (core_algos): token-level rewards and prompt ids to one advantage a token."""

from gigpo_fast import advantage
from gigpo_fast.integrations.verl_estimators import AS_IN_VERL, estimate

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rewards, mask = inputs["token_level_rewards"], inputs["mask"].bool()
    name = "grpo" if config["estimator"] == "grpo_vectorized" else config["estimator"]  # the same answer, faster
    if name == "gae":
        found = advantage.gae_advantages(rewards, inputs["values"], mask, gamma=config["gamma"], lam=config["lam"])
        tokens, returns = advantage.whiten(found.advantages, mask), found.returns
    elif name.endswith("optimal_token_baseline"):
        returns = advantage.token_returns(rewards, mask)
        tokens = advantage.optimal_token_baseline_advantages(
            rewards,
            inputs["group"],
            inputs["old_log_probs"],
            inputs["sum_pi_squared"],
            mask,
            count_trained_tokens=name.startswith("tir"),
        )
    elif name in AS_IN_VERL:
        scale = "std" if config["norm_adv_by_std_in_grpo"] else None
        tokens, returns = estimate(
            name, rewards, mask, inputs.get("group"), inputs.get("reward_baselines"), scale=scale, gamma=config.get("gamma", 1.0)
        )
    else:
        raise Unsupported(f"no function for the estimator {name!r}")
    outside = beyond(mask)
    return Answer({"advantages": tokens, "returns": returns}, {"advantages": outside, "returns": outside})


ADAPTER = Adapter(answer, {"advantages": REASON, "returns": REASON})
