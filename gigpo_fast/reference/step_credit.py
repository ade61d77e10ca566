"""Estimators over transitions and turns as their papers write them: dictionaries and loops over rows, in float64.

Labels are anything that Python can compare. `statistics` is any object with the fields count, singleton, zero_variance, eps and ddof.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from .advantage import DEFAULTS, _groups, _labels, _numbers, _valid, discounted_returns, group_advantages

LONE_ZERO = SimpleNamespace(count="row", singleton="zero", zero_variance="zero", eps=1e-6, ddof=1)


def success_distances(trajectory, group, anchor, *, success, next_anchor=None, step=None, valid=None) -> Tensor:
    """Breadth-first search backwards from success in the graph of each task, read at where each row leads."""
    walks = _walks(trajectory, group, anchor, step, valid)
    group, anchor = _labels(group), _labels(anchor)
    given = [-1] * len(anchor) if next_anchor is None else _labels(next_anchor)
    leads, edges = {}, []
    for rows in walks:
        won = any(bool(success[row]) for row in rows)
        for row, after in zip(rows, [*rows[1:], None]):
            leads[row] = given[row] if given[row] != -1 else (anchor[after] if after is not None else None)
            if after is None and won:
                leads[row] = "success"
            if leads[row] is not None:
                edges.append((group[row], anchor[row], leads[row]))
    found = torch.full((len(anchor),), float("nan"), dtype=torch.float64, device="cpu")
    for task in {task for task, *_ in edges}:
        distance, changed = {"success": 0}, True
        while changed:
            changed = False
            for of, source, target in edges:
                if of == task and target in distance and distance[target] + 1 < distance.get(source, math.inf):
                    distance[source], changed = distance[target] + 1, True
        farthest = max(distance.values())
        if farthest > 0:
            for row, target in leads.items():
                if group[row] == task:
                    found[row] = distance.get(target, farthest + 1)
    return found


def graph_advantages(
    rewards, trajectory, group, anchor, *, success, next_anchor=None, step=None, valid=None, decay=0.1, scale="std", statistics=None
) -> tuple[Tensor, Tensor]:
    """10 decay^distance compared within (group, anchor), and the whole (GraphGPO)."""
    statistics = statistics or DEFAULTS
    distance = success_distances(trajectory, group, anchor, success=success, next_anchor=next_anchor, step=step, valid=valid)
    known = ~distance.isnan()
    raw = torch.where(known, 10.0 * decay ** torch.where(known, distance, 0.0), 0.0)
    pairs = list(zip(_labels(group), _labels(anchor)))
    among = SimpleNamespace(**{**vars(LONE_ZERO), "eps": statistics.eps, "ddof": statistics.ddof})
    graph = group_advantages(raw, pairs, scale=scale, statistics=among, valid=known)
    return _episode(rewards, trajectory, group, valid, scale, statistics) + graph, graph


def g2po_advantages(
    rewards, trajectory, group, anchor, *, gamma=0.95, success_value=10.0, step=None, valid=None, scale=None, statistics=None
) -> tuple[Tensor, Tensor]:
    """The value a step led to among steps of its state, and as a gain among steps of its task (G2PO)."""
    rewards, group, anchor = _numbers(rewards), _labels(group), _labels(anchor)
    walks = _walks(trajectory, group, anchor, step, valid)
    visits, score = {}, {}
    for name, rows in zip(_names(trajectory, group, anchor, step, valid), walks):
        score[name] = math.fsum(rewards[row] for row in _rows_of(name, trajectory, group, valid, rewards))
        for left, row in enumerate(reversed(rows), 1):
            visits.setdefault((group[row], anchor[row]), []).append(gamma**left * score[name])
    value = {state: math.fsum(of) / len(of) for state, of in visits.items()}
    own, gain = torch.zeros(len(anchor), dtype=torch.float64, device="cpu"), torch.zeros(len(anchor), dtype=torch.float64, device="cpu")
    met = [False] * len(anchor)
    for name, rows in zip(_names(trajectory, group, anchor, step, valid), walks):
        for row, after in zip(rows, [*rows[1:], None]):
            ending = success_value if score[name] == success_value else 0.0
            reached = ending if after is None else value[group[after], anchor[after]]
            own[row] = reached
            gain[row] = reached - value[group[row], anchor[row]]
            met[row] = True
    node = group_advantages(own, list(zip(group, anchor)), scale=scale, statistics=LONE_ZERO, valid=met)
    edge = group_advantages(gain, group, scale=scale, statistics=LONE_ZERO, valid=met)
    return _episode(rewards, trajectory, group, valid, scale, statistics) + node + edge, node + edge


def state_gae_advantages(rewards, trajectory, group, anchor, *, gamma=0.95, lam=0.8, step=None, valid=None, scale="std") -> Tensor:
    """GAE with the mean return of a state's visits as its value, standardised over a task's rows (GAGPO)."""
    rewards, group = _numbers(rewards), _labels(group)
    anchor = [("lone", row) if state == -1 else state for row, state in enumerate(_labels(anchor))]
    names = list(zip(group, _labels(trajectory)))
    used = _valid(valid, rewards)
    returns = _numbers(discounted_returns(rewards, names, gamma=gamma, step=step, valid=used))
    value = {state: math.fsum(returns[row] for row in rows) / len(rows) for state, rows in _by(list(zip(group, anchor)), used).items()}
    raw = [0.0] * len(rewards)
    for rows in _walks(trajectory, group, anchor, step, valid):
        error, after = 0.0, 0.0
        for row in reversed(rows):
            here = value[group[row], anchor[row]]
            error = rewards[row] + gamma * after - here + gamma * lam * error
            raw[row], after = error, here
    return group_advantages(raw, group, scale=scale, statistics=LONE_ZERO, valid=used)


def action_advantages(rewards, trajectory, group, anchor, action, *, gamma=0.95, step=None, valid=None, shrinkage=0.0, gate=None) -> Tensor:
    """n / (n + shrinkage) (Q - V) of the returns in a state (PACE; the gate is ECPO's idea)."""
    group, anchor, action = _labels(group), _labels(anchor), _labels(action)
    used = _valid(valid, rewards)
    returns = _numbers(discounted_returns(rewards, list(zip(group, _labels(trajectory))), gamma=gamma, step=step, valid=used))
    met = [valid_row and state != -1 for valid_row, state in zip(used, anchor)]
    result = [0.0] * len(anchor)
    for rows in _by(list(zip(group, anchor)), met).values():
        value = math.fsum(returns[row] for row in rows) / len(rows)
        same = {row: [other for other in rows if action[other] == action[row]] for row in rows}
        mean = {row: math.fsum(returns[other] for other in same[row]) / len(same[row]) for row in rows}
        between = math.fsum((mean[row] - value) ** 2 for row in rows)
        within = math.fsum((returns[row] - mean[row]) ** 2 for row in rows)
        for row in rows:
            if len(same[row]) < len(rows):
                result[row] = len(same[row]) / (len(same[row]) + shrinkage) * (mean[row] - value)
                if gate is not None:
                    result[row] *= math.tanh(len(rows) / gate) * (between / (between + within) if between + within else 0.0)
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def turn_baseline_advantages(rewards, trajectory, group, *, gamma=1.0, leave_one_out=True, step=None, valid=None) -> Tensor:
    """R_t minus the (other) trajectories' mean return from turn t on; finished ones have 0."""
    group, rewards = _labels(group), _numbers(rewards)
    used = _valid(valid, rewards)
    returns = _numbers(discounted_returns(rewards, list(zip(group, _labels(trajectory))), gamma=gamma, step=step, valid=used))
    result = [0.0] * len(rewards)
    walks = _walks(trajectory, group, [0] * len(rewards), step, valid)
    for task in set(group):
        peers = [rows for rows in walks if group[rows[0]] == task]
        for rows in peers if len(peers) > 1 else []:
            for turn, row in enumerate(rows):
                others = [returns[peer[turn]] for peer in peers if len(peer) > turn and (peer is not rows or not leave_one_out)]
                result[row] = returns[row] - math.fsum(others) / (len(peers) - leave_one_out)
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def turn_gae_advantages(rewards, values, mask, turn_ids, *, gamma=1.0, lam=1.0, final_values=None) -> tuple[Tensor, Tensor]:
    """GAE over the turns of each row: the turn's rewards summed, the value at its first token (AReaL)."""
    advantages, returns = (
        torch.zeros(mask.shape, dtype=torch.float64, device="cpu"),
        torch.zeros(mask.shape, dtype=torch.float64, device="cpu"),
    )
    for row in range(mask.shape[0]):
        turns = _by(turn_ids[row].tolist(), mask[row].tolist())
        error, after = 0.0, 0.0 if final_values is None else float(final_values[row])
        for tokens in reversed(list(turns.values())):
            here = float(values[row, tokens[0]])
            error = math.fsum(float(rewards[row, token]) for token in tokens) + gamma * after - here + gamma * lam * error
            advantages[row, tokens], returns[row, tokens], after = error, error + here, here
    return advantages, returns


def _episode(rewards, trajectory, group, valid, scale, statistics) -> Tensor:
    names = list(zip(_labels(group), _labels(trajectory)))
    used, totals = _valid(valid, rewards), torch.zeros(len(names), dtype=torch.float64, device="cpu")
    for rows in _groups(names, used):
        totals[rows] = math.fsum(float(rewards[row]) for row in rows)
    return group_advantages(totals, group, scale=scale, statistics=statistics, trajectory=names, valid=used)


def _walks(trajectory, group, anchor, step, valid) -> list[list[int]]:
    """The rows of each (group, trajectory) that were taken in a state, in time order."""
    times = list(range(len(anchor))) if step is None else _labels(step)
    met = [used and state != -1 for used, state in zip(_valid(valid, anchor), _labels(anchor))]
    return [sorted(rows, key=lambda row: times[row]) for rows in _by(list(zip(_labels(group), _labels(trajectory))), met).values()]


def _names(trajectory, group, anchor, step, valid) -> list:
    names = list(zip(_labels(group), _labels(trajectory)))
    return [names[rows[0]] for rows in _walks(trajectory, group, anchor, step, valid)]


def _rows_of(name, trajectory, group, valid, rewards) -> list[int]:
    names, used = list(zip(_labels(group), _labels(trajectory))), _valid(valid, rewards)
    return [row for row in range(len(names)) if used[row] and names[row] == name]


def _by(labels, valid) -> dict:
    rows: dict = {}
    for row, label in enumerate(labels):
        if valid[row]:
            rows.setdefault(label, []).append(row)
    return rows
