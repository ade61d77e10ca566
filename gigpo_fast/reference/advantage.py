"""Advantages as the papers write them: loops over rows, one equation at a time, in float64.

Labels are anything that Python can compare (tensors are read as lists). Every function returns float64 tensors on the CPU.
`statistics` is any object with the fields count, singleton, zero_variance, eps and ddof; None stands for the defaults below.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

DEFAULTS = SimpleNamespace(count="trajectory", singleton="zero", zero_variance="zero", eps=1e-6, ddof=1)


def discounted_returns(rewards, trajectory, *, gamma, step=None, valid=None) -> Tensor:
    """R_t = r_t + gamma R_{t+1} within a trajectory, over its valid rows (GiGPO, Eq. 5)."""
    rewards, trajectory, valid = _numbers(rewards), _labels(trajectory), _valid(valid, rewards)
    times = _labels(step) if step is not None else list(range(len(rewards)))
    returns = [0.0] * len(rewards)
    following = {}
    for row in sorted((row for row in range(len(rewards)) if valid[row]), key=lambda row: times[row], reverse=True):
        returns[row] = rewards[row] + gamma * following.get(trajectory[row], 0.0)
        following[trajectory[row]] = returns[row]
    return torch.tensor(returns, dtype=torch.float64, device="cpu")


def group_advantages(scores, group, *, scale=None, statistics=None, trajectory=None, valid=None) -> Tensor:
    """(s - mean) / F within a group (GiGPO, Eq. 3; GRPO with scale="std")."""
    statistics = statistics or DEFAULTS
    scores, valid = _numbers(scores), _valid(valid, scores)
    names = _names(scores, trajectory, statistics.count)
    advantages = torch.zeros(len(scores), dtype=torch.float64, device="cpu")
    for rows in _groups(_labels(group), valid):
        units = list(_unit_scores(scores, names, rows).values())
        mean, deviation = _moments(units, statistics)
        for row in rows:
            if len(units) == 1:
                advantages[row] = _alone(scores[row], scale, statistics)
            else:
                advantages[row] = _standardised(scores[row], mean, deviation, scale, statistics)
    return advantages


def leave_one_out_advantages(scores, group, *, statistics=None, trajectory=None, valid=None) -> Tensor:
    """s - mean of the other trajectories of the group (RLOO)."""
    statistics = statistics or DEFAULTS
    scores, valid = _numbers(scores), _valid(valid, scores)
    names = _names(scores, trajectory, statistics.count)
    advantages = torch.zeros(len(scores), dtype=torch.float64, device="cpu")
    for rows in _groups(_labels(group), valid):
        units = _unit_scores(scores, names, rows)
        for row in rows:
            others = [score for name, score in units.items() if name != names[row]]
            advantages[row] = scores[row] - math.fsum(others) / len(others) if others else _alone(scores[row], None, statistics)
    return advantages


def gigpo_advantages(
    rewards,
    trajectory,
    group,
    anchor,
    *,
    gamma,
    step=None,
    valid=None,
    episode_scores=None,
    step_returns=None,
    step_weight=1.0,
    scale=None,
    statistics=None,
    min_trajectories=1,
    first_visit=False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A = A^E + step_weight A^S (GiGPO, Eq. 8); returns A, A^E, A^S and the step returns."""
    statistics = statistics or DEFAULTS
    rewards, trajectory, group, anchor = _numbers(rewards), _labels(trajectory), _labels(group), _labels(anchor)
    valid = _valid(valid, rewards)
    times = _labels(step) if step is not None else list(range(len(rewards)))
    if step_returns is None:
        step_returns = discounted_returns(rewards, trajectory, gamma=gamma, step=step, valid=valid)
    if episode_scores is None:  # R(tau), undiscounted
        episode_scores = torch.zeros(len(rewards), dtype=torch.float64, device="cpu")
        for rows in _groups(trajectory, valid):
            episode_scores[rows] = math.fsum(rewards[row] for row in rows)
    returns = [value if used else 0.0 for value, used in zip(_numbers(step_returns), valid)]
    episode = group_advantages(episode_scores, group, scale=scale, statistics=statistics, trajectory=trajectory, valid=valid)
    micro = torch.zeros(len(rewards), dtype=torch.float64, device="cpu")
    met = [used and state != -1 for used, state in zip(valid, anchor)]
    for rows in _groups(list(zip(group, anchor)), met):  # Eq. 6: the steps of one task in one state; Eq. 7
        earliest = {}  # trajectory -> its first visit to the state
        for row in sorted(rows, key=lambda row: times[row]):
            earliest.setdefault(trajectory[row], row)
        visits = list(earliest.values()) if first_visit else rows
        if len(earliest) < min_trajectories or len(visits) < 2:
            continue
        mean, deviation = _moments([returns[row] for row in visits], statistics)
        for row in rows:
            micro[row] = _standardised(returns[row], mean, deviation, scale, statistics)
    return episode + step_weight * micro, episode, micro, torch.tensor(returns, dtype=torch.float64, device="cpu")


def step_ids(mask, *, turns=False) -> Tensor:
    """The row of every trained token, or the run of trained tokens that it is in."""
    ids = torch.full(mask.shape, -1, dtype=torch.int64, device="cpu")
    runs = -1
    for row, tokens in enumerate(mask.tolist()):
        before = False
        for column, trained in enumerate(tokens):
            runs += trained and not before
            before = trained
            if trained:
                ids[row, column] = runs if turns else row
    return ids


def to_tokens(advantages, step_ids) -> Tensor:
    """The advantage of each token's step, 0 without one."""
    advantages = _numbers(advantages)
    flat = [advantages[step] if step >= 0 else 0.0 for step in step_ids.flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64, device="cpu").view(step_ids.shape)


def _moments(units: list[float], statistics) -> tuple[float, float]:
    if min(units) == max(units):
        return units[0], 0.0
    mean = math.fsum(units) / len(units)
    return mean, math.sqrt(math.fsum((unit - mean) ** 2 for unit in units) / (len(units) - statistics.ddof))


def _standardised(score: float, mean: float, deviation: float, scale: str | None, statistics) -> float:
    if scale is None:
        return score - mean
    if deviation == 0.0 and statistics.zero_variance == "zero":
        return 0.0
    return (score - mean) / (deviation + statistics.eps)


def _alone(score: float, scale: str | None, statistics) -> float:
    if statistics.singleton == "zero":
        return 0.0
    return score / (1.0 + statistics.eps) if scale == "std" else score  # mean 0, deviation 1


def _names(scores, trajectory, count) -> list:
    """What each row is a part of, where every name is counted once."""
    return list(range(len(scores))) if trajectory is None or count == "row" else _labels(trajectory)


def _unit_scores(scores, names, rows) -> dict:
    """name -> mean score of its rows."""
    gathered = {}
    for row in rows:
        gathered.setdefault(names[row], []).append(scores[row])
    return {name: sum(of) / len(of) if min(of) < max(of) else of[0] for name, of in gathered.items()}


def _groups(labels, valid) -> list[list[int]]:
    """The valid rows of each label."""
    groups = {}
    for row, label in enumerate(labels):
        if valid[row]:
            groups.setdefault(label, []).append(row)
    return list(groups.values())


def _numbers(values) -> list[float]:
    return values.to(torch.float64).tolist() if isinstance(values, Tensor) else [float(value) for value in values]


def _labels(labels) -> list:
    return labels.tolist() if isinstance(labels, Tensor) else list(labels)


def _valid(valid, rows) -> list[bool]:
    return [True] * len(rows) if valid is None else [bool(used) for used in valid]
