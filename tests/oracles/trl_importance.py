"""TRL's importance ratio of the trainer against vLLM: the rollout correction block, token by token."""

import torch

from gigpo_fast.objective import RolloutCorrection, SequenceSum, TokenLevel

from .adapter import Adapter, Answer
from .policy import factors
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["completion_mask"].bool()
    if inputs["tool_mask"] is not None:
        mask = mask & inputs["tool_mask"].bool()
    level, kind = config["vllm_importance_sampling_mode"].split("_")
    low, high = config["vllm_importance_sampling_clip_min"], config["vllm_importance_sampling_clip_max"]
    block = RolloutCorrection(
        TokenLevel() if level == "token" else SequenceSum(),
        low=low,
        high=high,
        truncate=kind == "truncate",
        log_ratio_clip=None,
    )
    ids = torch.arange(mask.shape[0])[:, None].expand(mask.shape)
    old, rollout = inputs["old_log_probs"], inputs["sampling_log_probs"]
    ratio = factors(block, mask, old=old, sequence_ids=ids, rollout_log_probs=rollout)
    if level == "token":
        return Answer({"importance_sampling_ratio": torch.where(mask, ratio, 1)})  # TRL says 1 where there is no token
    return Answer({"importance_sampling_ratio": torch.where(mask, ratio, 0).amax(1, keepdim=True)})


ADAPTER = Adapter(answer)
