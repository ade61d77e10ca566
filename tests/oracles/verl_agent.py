"""verl-agent's GiGPO (gigpo/core_gigpo.py): anchor groups, step returns, episode, step and joint advantages."""

import torch
from torch import Tensor

from gigpo_fast import advantage, anchor
from gigpo_fast.advantage import VERL_AGENT, GroupStatistics
from gigpo_fast.types import GiGPOAdvantages

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case, read_steps

# compute_mean_std_cross_steps=False: each trajectory is counted once.
PER_TRAJECTORY = GroupStatistics(count="trajectory", singleton=VERL_AGENT.singleton, zero_variance=VERL_AGENT.zero_variance)

ROUNDINGS = 4


def answer(case: Case) -> Answer:
    """Synthetic batches: several tokens a row, scores of the episode in the token-level rewards."""
    inputs = case.inputs
    group, trajectory = inputs["group"], inputs["trajectory"]
    scores, scale = inputs["token_level_rewards"].sum(-1), _scale(case)
    if case.config["enable_similarity"]:
        states = anchor.group_similar_states(inputs["anchor_states"], group, threshold=case.config["similarity_thresh"])
    else:
        states = anchor.group_states(inputs["anchor_states"], group)
    rewards = torch.tensor(inputs["rewards"])
    returns = advantage.discounted_returns(rewards, trajectory, gamma=case.config["gamma"])
    # In some batches a step has a task of its own. Here a trajectory may have one task only, so the peer's key (task, trajectory) is the label.
    own = [f"{task}/{label}" for task, label in zip(group, trajectory)]
    result = _gigpo(case, rewards, own, group, states.ids, episode_scores=scores, step_returns=returns)
    per_trajectory = advantage.group_advantages(scores, group, scale=scale, statistics=PER_TRAJECTORY, trajectory=own)
    step_ids = advantage.step_ids(inputs["mask"].bool())
    episode = _resolution(scores, anchor.group_ids(group), scale)
    per_row = episode + case.config["step_advantage_w"] * _resolution(result.step_returns, states.ids, scale)
    return Answer(
        outputs={
            "step_returns": result.step_returns,
            "anchor_ids": states.ids,
            "episode_advantages": advantage.to_tokens(result.episode, step_ids),
            "episode_advantages_per_trajectory": advantage.to_tokens(per_trajectory, step_ids),
            "advantages": advantage.to_tokens(result.advantages, step_ids),
        },
        slack={
            "episode_advantages": episode[:, None],
            "episode_advantages_per_trajectory": episode[:, None],
            "advantages": per_row[:, None],
        },
    )


def answer_rollouts(case: Case) -> Answer:
    """Recorded rollouts: one token a row, so that rows and tokens are the same."""
    if case.inputs["steps"] is None:
        raise Unsupported(f"no rollout file {case.name.partition('/')[0]}.jsonl.gz in the folders given with --rollouts")
    steps = read_steps(case.inputs["steps"])
    rewards = torch.tensor([float(step["reward"]) for step in steps])
    group, trajectory = [step["task_id"] for step in steps], [step["traj_uid"] for step in steps]
    states = anchor.group_states([step["obs"] for step in steps], group)
    result = _gigpo(case, rewards, trajectory, group, states.ids)

    own = anchor.group_ids(trajectory)
    scores = torch.zeros_like(rewards).index_add(0, own, rewards)[own]
    slack = _resolution(scores, anchor.group_ids(group), _scale(case))
    slack = slack + case.config["step_advantage_w"] * _resolution(result.step_returns, states.ids, _scale(case))
    return Answer({"step_returns": result.step_returns, "anchor_ids": states.ids, "advantages": result.advantages}, {"advantages": slack})


def _gigpo(case: Case, rewards: Tensor, trajectory: list[str], group: list[str], anchors: Tensor, **given: Tensor) -> GiGPOAdvantages:
    return advantage.gigpo_advantages(
        rewards,
        trajectory,
        group,
        anchors,
        gamma=case.config["gamma"],
        step_weight=case.config["step_advantage_w"],
        scale=_scale(case),
        statistics=VERL_AGENT,
        **given,
    )


def _scale(case: Case) -> str | None:
    modes = {"mean_norm": None, "mean_std_norm": "std"}
    if case.config["mode"] not in modes:
        raise Unsupported(f"no scale for mode {case.config['mode']!r}")
    return modes[case.config["mode"]]


def _resolution(scores: Tensor, ids: Tensor, scale: str | None) -> Tensor:
    """(S,) what float32 can tell apart in scores that are centred, and maybe divided, within their group. A tolerance, never an answer."""
    scores = scores.double()
    count = torch.bincount(ids).double()
    total = lambda values: torch.zeros_like(count).index_add(0, ids, values)  # noqa: E731
    variance = total((scores - (total(scores) / count)[ids]).square()) / (count - 1).clamp(min=1)
    largest = torch.zeros_like(count).scatter_reduce(0, ids, scores.abs(), "amax")
    return (ROUNDINGS * 2.0**-24 * largest / (variance.sqrt() + 1e-6 if scale == "std" else 1.0))[ids]


_REASON = (
    f"the peer takes means and deviations in float32, so its mean is off by up to {ROUNDINGS} roundings of the scores; over a deviation near 0 "
    "this grows (a group of equal scores gets up to 0.2 instead of 0): added to the tolerance are those roundings over the group's deviation + 1e-6"
)
LOOSER = dict.fromkeys(("episode_advantages", "episode_advantages_per_trajectory", "advantages"), _REASON)
ADAPTER = Adapter(answer, LOOSER)
ROLLOUTS_ADAPTER = Adapter(answer_rollouts, LOOSER)
