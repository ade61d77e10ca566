"""verl's advantage estimators on this engine: those that need no more than verl's compute_advantage hands to an estimator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import advantage, checks
from ..advantage import CORRECTED, VERL
from ..anchor import group_ids

# verl's conventions: every row counts, a lone row keeps its raw score, a constant group is divided by eps.
AS_IN_VERL = ("grpo", "grpo_passk", "rloo", "opo", "gpg", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax")
# Rows without a trained token are outside every statistic; a lone row gets 0, a constant group exactly 0.
CORRECTED_NAMES = ("grpo_corrected", "rloo_corrected", "maxrl", "rank")
NAMES = (*AS_IN_VERL, *CORRECTED_NAMES)


def estimator(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function for verl's register_adv_est: (token_level_rewards, response_mask, config=, index=, ...) -> (advantages, returns).

    `config` is verl's AlgoConfig: norm_adv_by_std_in_grpo (grpo, grpo_passk, grpo_corrected) and gamma (reinforce_plus_plus) are read.
    Masked tokens get advantage 0. Without Python loops over rows; statistics in float64.
    """
    full = f"gigpo_fast_{name}"

    def compute(
        token_level_rewards: Tensor,  # (B, T)
        response_mask: Tensor,  # (B, T) bool, or 0 and 1
        config: Any = None,
        index: Sequence | None = None,  # (B,) uid of each row's prompt
        reward_baselines: Tensor | None = None,  # (B,)
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        if others:
            checks.fail(full, "keywords", "those of verl's compute_advantage", f"also {sorted(others)}", "leave out what would not be read")
        if name == "remax" and reward_baselines is None:
            checks.fail(full, "reward_baselines", "given", None, "verl's trainer computes them for adv_estimator=remax only: pass them")
        grouped = name not in ("reinforce_plus_plus", "remax")
        if grouped and index is None:
            checks.fail(full, "index", "the uid of every row", None, "keep uid in the batch's non_tensor_batch")
        mask = response_mask.to(torch.bool)
        by_deviation, gamma = (True, 1.0) if config is None else (config.norm_adv_by_std_in_grpo, config.gamma)
        group = labels(full, index, mask.shape[0]).to(mask.device) if grouped else None
        with torch.no_grad():
            return estimate(name, token_level_rewards, mask, group, reward_baselines, scale="std" if by_deviation else None, gamma=gamma)

    compute.__name__ = compute.__qualname__ = full
    return compute


def labels(function: str, index: Sequence | Tensor, rows: int) -> Tensor:
    """(B,) int64 dense numbers of the uids."""
    if len(index) != rows:
        checks.fail(function, "index", f"{rows} uids, one a row", f"{len(index)} of them", "pass the uids of the same batch")
    return group_ids(index)


def estimate(
    name: str,
    rewards: Tensor,  # (B, T)
    mask: Tensor,  # (B, T) bool
    group: Tensor | None,  # (B,) int64
    baselines: Tensor | None = None,  # (B,)
    *,
    scale: str | None,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), (B, T) each. A row's score is the sum of all its rewards, as in verl."""
    scores = rewards.sum(-1)
    match name:
        case "reinforce_plus_plus":
            tokens = advantage.reinforce_plus_plus_advantages(rewards, mask, gamma=gamma)
            return tokens, advantage.token_returns(rewards, mask, gamma=gamma)
        case "remax":
            return advantage.remax_advantages(rewards, baselines, mask), advantage.token_returns(rewards, mask)
        case "reinforce_plus_plus_baseline":
            tokens = advantage.reinforce_plus_plus_baseline_advantages(scores, group, advantage.step_ids(mask), statistics=VERL)
            return tokens, tokens
        case "grpo":
            rows = advantage.group_advantages(scores, group, scale=scale, statistics=VERL)
        case "grpo_passk":
            rows = advantage.max_at_k_advantages(scores, group, scale=scale, statistics=VERL)
        case "rloo":
            rows = advantage.leave_one_out_advantages(scores, group, statistics=VERL)
        case "opo":
            rows = advantage.opo_advantages(scores, mask.sum(-1), group, statistics=VERL)
        case "gpg":
            rows = advantage.gpg_advantages(scores, group, rescale="nonzero_scores", singleton="raw")
        case "grpo_corrected":
            rows = advantage.group_advantages(scores, group, scale=scale, statistics=CORRECTED, valid=mask.any(-1))
        case "rloo_corrected":
            rows = advantage.leave_one_out_advantages(scores, group, statistics=CORRECTED, valid=mask.any(-1))
        case "maxrl":
            rows = advantage.maxrl_advantages(scores, group, valid=mask.any(-1))
        case "rank":
            rows = advantage.rank_advantages(scores, group, valid=mask.any(-1))
        case _:
            raise ValueError(f"estimate: name must be one of {NAMES}, got {name!r}")
    tokens = advantage.to_tokens(rows, advantage.step_ids(mask))
    return tokens, tokens
