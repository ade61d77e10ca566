"""verl's advantage estimators (core_algos): token-level rewards and prompt ids to one advantage a token."""

from gigpo_fast import advantage
from gigpo_fast.advantage import GroupStatistics

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case

# A lone row passes its raw score on, a constant group is divided by eps.
VERL = GroupStatistics(singleton="raw", zero_variance="divide")


def answer(case: Case) -> Answer:
    inputs = case.inputs
    scores = inputs["token_level_rewards"].sum(-1)
    match case.config["estimator"]:
        case "grpo" | "grpo_vectorized":
            scale = "std" if case.config["norm_adv_by_std_in_grpo"] else None
            rows = advantage.group_advantages(scores, inputs["group"], scale=scale, statistics=VERL)
        case "rloo":
            rows = advantage.leave_one_out_advantages(scores, inputs["group"], statistics=VERL)
        case other:
            raise Unsupported(f"no function for the estimator {other!r}")
    tokens = advantage.to_tokens(rows, advantage.step_ids(inputs["mask"].bool()))
    return Answer({"advantages": tokens, "returns": tokens})  # without a critic verl returns the advantages twice


ADAPTER = Adapter(answer)
