"""The functions of verl-agent's gigpo.core_gigpo on this engine: the same names, signatures and answers.

    import gigpo.core_gigpo
    from gigpo_fast.integrations import verl_agent
    verl_agent.replace(gigpo.core_gigpo)        # before the trainer starts

Departures, each because the original's answer is noise or an accident:
  - means and deviations in float64, rounded once to float32. The original takes them in the dtype of the scores: in bfloat16 for
    bfloat16 scores, and in float32 a group of equal scores may get up to 0.5 instead of 0;
  - arrays are equal if dtype, shape and bytes are. The original compares their numbers alone: a (2, 3) and a (3, 2) image may meet, an
    image that holds a NaN never meets itself;
  - masked tokens get exactly 0 whatever the scores are, NaN included;
  - wrong input raises by name where the original fails on an assert or returns nonsense (an inactive step, an unknown mode);
  - group labels are short numbers in order of first occurrence, not random UUIDs, and nothing is printed unless summarize=True.
"""

import collections
import dataclasses
import difflib
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..advantage import VERL_AGENT, combined_labels, discounted_returns, group_advantages
from ..advantage.moments import moments, standardise
from ..anchor import group_ids, group_similar_states, group_states

NAMES = (
    "to_hashable",
    "summarize_group_size",
    "are_similar",
    "compute_step_discounted_returns",
    "compute_gigpo_outcome_advantage",
    "episode_norm_reward",
    "build_step_group",
    "step_norm_reward",
)
MODES = {"mean_norm": None, "mean_std_norm": "std"}
_AMONG_STEPS = dataclasses.replace(VERL_AGENT, singleton="zero")


def replace(module: Any) -> None:
    """Put these functions in the place of `module`'s, a gigpo.core_gigpo or one with its functions.

        for name in NAMES:
            setattr(module, name, globals()[name])

    Callers that look the functions up in the module get the new ones; names imported from it before keep the old. Raises
    AttributeError, before anything is replaced, if the module lacks one of them.
    """
    missing = [name for name in NAMES if not callable(getattr(module, name, None))]
    if missing:
        fix = "pass gigpo.core_gigpo of verl-agent, or the module that holds these functions in your version"
        checks.fail("replace", "module", f"one with the functions {', '.join(NAMES)}", f"no {missing}", fix, error=AttributeError)
    for name in NAMES:
        setattr(module, name, globals()[name])


def compute_step_discounted_returns(batch: Any, gamma: float) -> Tensor:
    """(S,) float32 discounted reward from each row to the end of its trajectory, on the device of batch.batch["input_ids"].

        following = rewards[t + 1:] of the same traj_uid;  returns[t] = sum(gamma**k * r for k, r in enumerate([rewards[t], *following]))

    `batch` is verl-agent's DataProto: rewards, traj_uid and active_masks in non_tensor_batch, rows of a trajectory in time order.
    Accumulated in float64. Raises for a row that is not active. Source: Eq. 5 of GiGPO (arXiv 2505.10978).
    """
    rows = batch.non_tensor_batch
    idle = [row for row, active in enumerate(rows["active_masks"]) if not active]
    if idle:
        fix = "leave out the steps of environments that have finished"
        checks.fail("compute_step_discounted_returns", "active_masks", "true in every row", f"false in rows {idle[:8]}", fix)
    rewards = torch.tensor([float(reward) for reward in rows["rewards"]], dtype=torch.float32, device="cpu")
    return discounted_returns(rewards, _labels(rows["traj_uid"]), gamma=gamma).to(batch.batch["input_ids"].device)


def compute_gigpo_outcome_advantage(
    token_level_rewards: Tensor,  # (S, L)
    step_rewards: Tensor,  # (S,) discounted returns
    response_mask: Tensor,  # (S, L)
    anchor_obs: Any,  # (S,) any states
    index: Any,  # (S,) task of each row
    traj_index: Any,  # (S,) trajectory of each row
    epsilon: float = 1e-6,
    step_advantage_w: float = 1.0,
    mode: str = "mean_norm",
    enable_similarity: bool = False,
    similarity_thresh: float = 0.95,
) -> tuple[Tensor, Tensor]:  # (S, L) twice, the same tensor
    """Advantages and returns of a batch with one step a row: episode level plus step_advantage_w times step level.

        episode = episode_norm_reward(token_level_rewards, response_mask, index, traj_index, epsilon, mode == "mean_norm")
        groups = build_step_group(anchor_obs, index, enable_similarity, similarity_thresh)
        step = step_norm_reward(step_rewards, response_mask, groups, epsilon, mode == "mean_norm")
        return (episode + step_advantage_w * step,) * 2

    Raises ValueError for another mode. Source: Eq. 8 of GiGPO (arXiv 2505.10978).
    """
    if mode not in MODES:
        checks.fail(
            "compute_gigpo_outcome_advantage", "mode", " or ".join(map(repr, MODES)), mode, "mean_std_norm divides by the deviation"
        )
    remove_std = MODES[mode] is None
    episode = episode_norm_reward(token_level_rewards, response_mask, index, traj_index, epsilon, remove_std)
    groups = build_step_group(anchor_obs, index, enable_similarity, similarity_thresh)
    step = step_norm_reward(step_rewards, response_mask, groups, epsilon, remove_std)
    advantages = episode + step_advantage_w * step
    return advantages, advantages


def episode_norm_reward(
    token_level_rewards: Tensor,  # (S, L)
    response_mask: Tensor,  # (S, L)
    index: Any,  # (S,) task of each row
    traj_index: Any,  # (S,) trajectory of each row
    epsilon: float = 1e-6,
    remove_std: bool = True,
    compute_mean_std_cross_steps: bool = True,
) -> Tensor:  # (S, L) float32
    """The sum of each row's rewards, centred in its task and, unless remove_std, divided by the deviation + epsilon.

        of_task = scores[index == index[i]];  (scores[i] - of_task.mean()) / (of_task.std() + epsilon)

    Every row counts; with compute_mean_std_cross_steps=False the first row of each trajectory only. A task with one counted row
    leaves its scores as they are. Source: Eq. 3 of GiGPO (arXiv 2505.10978).
    """
    scores, task = token_level_rewards.detach().sum(-1), group_ids(_labels(index)).to(token_level_rewards.device)
    counted = torch.ones_like(task, dtype=torch.bool)
    if not compute_mean_std_cross_steps:
        own = combined_labels(task.tolist(), _labels(traj_index)).tolist()
        firsts = {label: row for row, label in reversed(list(enumerate(own)))}
        counted = torch.tensor([firsts[label] == row for row, label in enumerate(own)], dtype=torch.bool, device=task.device)
    values = scores.double()
    found = moments(values, counted, task, ddof=VERL_AGENT.ddof)
    statistics = dataclasses.replace(VERL_AGENT, eps=epsilon)
    return _at_tokens(standardise(values, found, None if remove_std else "std", statistics).float(), response_mask)


def step_norm_reward(
    step_rewards: Tensor,  # (S,)
    response_mask: Tensor,  # (S, L)
    index: Any,  # (S,) what build_step_group returned
    epsilon: float = 1e-6,
    remove_std: bool = True,
) -> Tensor:  # (S, L) float32
    """Each row's discounted return, centred in its step group and, unless remove_std, divided by the deviation + epsilon.

        of_state = step_rewards[index == index[i]];  (step_rewards[i] - of_state.mean()) / (of_state.std() + epsilon)

    A group of one gives 0. Source: Eq. 7 of GiGPO (arXiv 2505.10978).
    """
    statistics = dataclasses.replace(_AMONG_STEPS, eps=epsilon)
    scale = None if remove_std else "std"
    return _at_tokens(group_advantages(step_rewards, _labels(index), scale=scale, statistics=statistics), response_mask)


def build_step_group(
    anchor_obs: Any,  # (S,) any states
    index: Any,  # (S,) task of each row
    enable_similarity: bool = False,
    similarity_thresh: float = 0.95,
    summarize: bool = False,
) -> Any:  # (S,) object array of str
    """The anchor group of each row: rows of one task in the same state, or in texts at least similarity_thresh alike.

        [number.setdefault((task, to_hashable(state)), str(len(number))) for task, state in zip(index, anchor_obs)]

    Texts are grouped natively, other states by to_hashable. Raises TypeError for states without a key, and as
    anchor.group_similar_states does. Source: Eq. 6 of GiGPO (arXiv 2505.10978).
    """
    import numpy

    states, task = list(anchor_obs), _labels(index)
    if enable_similarity:
        ids = group_similar_states(states, task, threshold=similarity_thresh).ids.tolist()
    elif all(type(state) is str for state in states):
        ids = group_states(states, task).ids.tolist()
    else:
        number: dict[tuple, int] = {}
        ids = [number.setdefault((label, to_hashable(state)), len(number)) for label, state in zip(task, states, strict=True)]
    if summarize:
        summarize_group_size(list(collections.Counter(ids).values()))
    found = numpy.empty(len(ids), dtype=object)
    found[:] = [str(number) for number in ids]
    return found


def to_hashable(x: Any) -> Hashable:
    """A key that is equal where states are: numbers and texts as they are, containers by content, arrays by dtype, shape and bytes.

    Lists and tuples are alike, and so are dicts in any order; 1, 1.0 and True are equal, as everywhere in Python. Raises TypeError
    for other kinds.
    """
    if isinstance(x, (int, float, str, bool)):
        return x
    if isinstance(x, (list, tuple)):
        return tuple(to_hashable(item) for item in x)
    if isinstance(x, dict):
        return tuple((key, to_hashable(value)) for key, value in sorted(x.items()))
    if hasattr(x, "dtype") and hasattr(x, "tobytes"):  # NumPy, without importing it
        if x.dtype.hasobject:
            return to_hashable(x.tolist())
        return (x.dtype.str, x.shape, x.tobytes()) if x.shape else x.item()
    fix = "turn the state into text, numbers, arrays, or lists and dicts of these"
    checks.fail("to_hashable", "x", "int, float, str, bool, an array, list, tuple or dict", f"a {type(x).__name__}", fix, error=TypeError)


def are_similar(a: str, b: str, threshold: float = 0.95) -> bool:
    """Whether difflib's ratio of two texts is at least `threshold`. Raises ValueError for anything but texts.

    difflib.SequenceMatcher(None, a, b).ratio() >= threshold
    """
    for name, text in (("a", a), ("b", b)):
        if not isinstance(text, str):
            checks.fail(
                "are_similar", name, "a str", f"a {type(text).__name__}", "similarity compares texts; exact grouping takes any state"
            )
    return difflib.SequenceMatcher(None, a, b).ratio() >= threshold


def summarize_group_size(group_size: list) -> None:
    """Print how many groups there are of each size. Raises ValueError without a group."""
    if not group_size:
        checks.fail(
            "summarize_group_size", "group_size", "the size of one group at least", "an empty list", "call it with a batch's groups"
        )
    print("group size: groups, share of the groups")
    for size, groups in sorted(collections.Counter(group_size).items()):
        print(f"{size:>10}: {groups}, {groups / len(group_size):.1%}")


def _labels(values: Any) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _at_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(S, L): a row's value times its mask, exactly 0 where the mask is."""
    return torch.where(mask != 0, values.to(mask.device)[:, None] * mask, 0.0)
