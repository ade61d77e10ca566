"""The estimators of one number a row, as their papers write them: loops over groups and subsets, in float64.

Labels are anything that Python can compare. Every function returns float64 tensors on the CPU, 0 for rows that are not valid.
`statistics` is any object with the fields singleton, zero_variance, eps and ddof.
"""

import itertools
import math

import torch
from torch import Tensor

from .advantage import DEFAULTS, _groups, _labels, _numbers, _valid, discounted_returns, group_advantages


def normalise(
    scores, group=None, *, mean_over="group", std_over="group", leave_one_out=False, around_mean=False, statistics=None, valid=None
):
    """Centre by one level's mean, divide by one level's deviation; a level is the group, the batch or nothing."""
    statistics = statistics or DEFAULTS
    scores, valid = _numbers(scores), _valid(valid, scores)
    labels = _labels(group) if group is not None else [0] * len(scores)
    levels = {"group": labels, "batch": [0] * len(scores), None: None}
    count, centred = [2] * len(scores), list(scores)
    if mean_over is not None:
        for rows in _groups(levels[mean_over], valid):
            for row in rows:
                others = [other for other in rows if other != row] if leave_one_out and len(rows) > 1 else rows
                centred[row] = scores[row] - _mean([scores[other] for other in others])
                count[row] = len(rows)
    result = list(centred)
    if std_over is not None:
        for rows in _groups(levels[std_over], valid):
            values = centred if around_mean else scores
            middle = 0.0 if around_mean else _mean([values[row] for row in rows])
            deviation = math.sqrt(math.fsum((values[row] - middle) ** 2 for row in rows) / max(len(rows) - statistics.ddof, 1))
            for row in rows:
                flat = deviation == 0.0 and statistics.zero_variance == "zero"
                result[row] = 0.0 if flat else centred[row] / (deviation + statistics.eps)
                count[row] = min(count[row], len(rows)) if mean_over is not None else len(rows)
    for row in range(len(scores)):
        if count[row] == 1:
            alone = scores[row] / (1.0 + statistics.eps) if std_over is not None else scores[row]
            result[row] = alone if statistics.singleton == "raw" else 0.0
    return _tensor(result, valid)


def scaled_leave_one_out_advantages(scores, group, *, eps=1e-6, valid=None) -> Tensor:
    """(s - mean of the others) / (std of the others + eps); not divided where the others are equal or one."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        for row in rows:
            others = [scores[other] for other in rows if other != row]
            if others:
                gap = scores[row] - _mean(others)
                result[row] = gap if min(others) == max(others) else gap / (_std(others, 1) + eps)
    return _tensor(result, valid)


def opo_advantages(scores, lengths, group, *, statistics=None, valid=None) -> Tensor:
    """s - sum(length s) / sum(length) over the group (OPO)."""
    statistics = statistics or DEFAULTS
    scores, lengths, valid = _numbers(scores), _numbers(lengths), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        total = math.fsum(lengths[row] for row in rows)
        baseline = math.fsum(lengths[row] * scores[row] for row in rows) / total if total else 0.0
        for row in rows:
            if len(rows) == 1:
                result[row] = scores[row] if statistics.singleton == "raw" else 0.0
            else:
                result[row] = scores[row] - baseline if total else 0.0
    return _tensor(result, valid)


def soft_values(scores, group, *, temperature, valid=None) -> Tensor:
    """T log mean exp(s / T) of the row's group (V* of A*-PO)."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        top = max(scores[row] for row in rows)
        for row in rows:
            result[row] = top + temperature * math.log(_mean([math.exp((scores[other] - top) / temperature) for other in rows]))
    return _tensor(result, valid)


def soft_baseline_advantages(scores, group, *, temperature=None, shift=0.0, statistics=None, valid=None) -> Tensor:
    """s - (mean or soft maximum + shift) (AsymRE, OPMD)."""
    statistics = statistics or DEFAULTS
    soft = None if temperature is None else soft_values(scores, group, temperature=temperature, valid=valid).tolist()
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        for row in rows:
            baseline = _mean([scores[other] for other in rows]) if soft is None else soft[row]
            alone = scores[row] if statistics.singleton == "raw" else 0.0
            result[row] = scores[row] - (baseline + shift) if len(rows) > 1 else alone
    return _tensor(result, valid)


def gpg_advantages(scores, group, *, normaliser=1.0, rescale="informative_groups", singleton="zero", valid=None) -> Tensor:
    """alpha (s - mean) / F (GPG)."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result, informative = [0.0] * len(scores), 0
    for rows in _groups(_labels(group), valid):
        values = [scores[row] for row in rows]
        informative += len(rows) if min(values) != max(values) else 0
        for row in rows:
            result[row] = scores[row] if len(rows) == 1 and singleton == "raw" else scores[row] - _mean(values)
    nonzero = sum(used and score != 0.0 for score, used in zip(scores, valid))
    carrying = {"informative_groups": informative, "nonzero_scores": nonzero}.get(rescale)
    alpha = 1.0 if rescale is None else sum(valid) / max(carrying, 1)
    return _tensor([alpha * value / normaliser for value in result], valid)


def maxrl_advantages(scores, group, *, valid=None) -> Tensor:
    """(s - mean) / mean, 0 where the mean is not positive (MaxRL)."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        mean = _mean([scores[row] for row in rows])
        for row in rows:
            result[row] = (scores[row] - mean) / mean if mean > 0.0 else 0.0
    return _tensor(result, valid)


def max_at_k_advantages(scores, group, *, k=None, scale=None, statistics=None, valid=None) -> Tensor:
    """The mean over the k-subsets of the group of what the row adds to the maximum (PKPO)."""
    statistics = statistics or DEFAULTS
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        size = len(rows) if k is None else min(k, len(rows))
        if len(rows) == 1:
            raw = scores[rows[0]] / (1.0 + statistics.eps if scale == "std" else 1.0)
            result[rows[0]] = raw if statistics.singleton == "raw" else 0.0
            continue
        values = [scores[row] for row in rows]
        if min(values) == max(values):
            continue
        for row in rows:
            added = 0.0
            for subset in itertools.combinations(rows, size):
                if row in subset:
                    added += max(scores[i] for i in subset) - max(scores[i] for i in subset if i != row)
            result[row] = added / math.comb(len(rows), size)
            if scale == "std":
                result[row] /= _std(values, statistics.ddof) + statistics.eps
    return _tensor(result, valid)


def pass_at_k_advantages(scores, group, *, k, eps=0.0, valid=None) -> Tensor:
    """GRPO with all k-subsets of the group as the samples, their maximum as reward (Pass@k Training)."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        subsets = list(itertools.combinations(rows, min(k, len(rows))))
        rewards = [max(scores[i] for i in subset) for subset in subsets]
        if min(rewards) == max(rewards):
            continue
        mean, deviation = _mean(rewards), _std(rewards, 0)
        for row in rows:
            own = [reward for reward, subset in zip(rewards, subsets) if row in subset]
            result[row] = (_mean(own) - mean) / (deviation + eps)
    return _tensor(result, valid)


def normalised_sum(rewards, group, *, weights=None, scale="std", statistics=None, valid=None) -> Tensor:
    """sum_k w_k z_k with z_k normalised in its group, over the rows that have reward k."""
    rewards = rewards.to(torch.float64)
    each = torch.ones(rewards.shape, dtype=torch.bool, device="cpu") if valid is None else valid
    each = each if each.dim() == 2 else each[:, None].expand(rewards.shape)
    total = torch.zeros(rewards.shape[0], dtype=torch.float64, device="cpu")
    for k in range(rewards.shape[1]):
        weight = 1.0 if weights is None else float(weights[k])
        column = torch.where(each[:, k], rewards[:, k], 0.0)
        total += weight * group_advantages(column, group, scale=scale, statistics=statistics, valid=each[:, k])
    return total


def rank_advantages(scores, group, *, top=None, valid=None) -> Tensor:
    """Edges of the ranking DAG: (beats - beaten) / edges; rows beaten by `top` others or more are known to be worse, no more."""
    scores, valid = _numbers(scores), _valid(valid, scores)
    result = [0.0] * len(scores)
    for rows in _groups(_labels(group), valid):
        better = {row: sum(scores[other] > scores[row] for other in rows) for row in rows}
        inside = {row for row in rows if top is None or better[row] < top}
        edges = [(i, j) for i in inside for j in rows if scores[i] > scores[j]]
        for i, j in edges:
            result[i] += 1.0 / len(edges)
            result[j] -= 1.0 / len(edges)
    return _tensor(result, valid)


def running_baseline_advantages(scores, agent, baselines, *, decay=0.95, valid=None) -> tuple[Tensor, Tensor]:
    """s - b with b <- decay b + (1 - decay) s after use, one b an agent."""
    scores, valid, agent = _numbers(scores), _valid(valid, scores), _labels(agent)
    kept = _numbers(baselines)
    result = [0.0] * len(scores)
    for row, score in enumerate(scores):
        if valid[row]:
            result[row] = score - kept[agent[row]]
            kept[agent[row]] = decay * kept[agent[row]] + (1.0 - decay) * score
    return _tensor(result, valid), torch.tensor(kept, dtype=torch.float64, device="cpu")


def semantic_entropy(cluster, group, *, log_probs=None, normalised=True, expected=True, valid=None) -> Tensor:
    """-sum p log p, or -mean log p, over the masses p of the clusters of a group (SEED-GRPO, Eq. 5)."""
    cluster, group = _labels(cluster), _labels(group)
    valid = _valid(valid, cluster)
    logs = [0.0] * len(cluster) if log_probs is None else _numbers(log_probs)
    result = [0.0] * len(cluster)
    for rows in _groups(group, valid):
        masses: dict = {}
        for row in rows:
            masses[cluster[row]] = masses.get(cluster[row], 0.0) + math.exp(logs[row])
        whole = sum(masses.values()) if normalised else 1.0
        shares = [mass / whole for mass in masses.values()]
        entropy = -math.fsum(p * math.log(p) for p in shares) if expected else -_mean([math.log(p) for p in shares])
        for row in rows:
            result[row] = entropy
    return _tensor(result, valid)


def hgpo_advantages(
    rewards, trajectory, group, anchor, *, gamma, history=2, length_exponent=1.0, scale=None, statistics=None, step=None, valid=None
) -> Tensor:
    """The weighted mean over k of the advantage among steps of the task that share their last k states (HGPO)."""
    trajectory, group, anchor = _labels(trajectory), _labels(group), _labels(anchor)
    rewards = _numbers(rewards)
    valid = _valid(valid, rewards)
    times = _labels(step) if step is not None else list(range(len(rewards)))
    returns = _numbers(discounted_returns(rewards, trajectory, gamma=gamma, step=step, valid=valid))
    met = [used and state != -1 for used, state in zip(valid, anchor)]
    past: dict = {}
    context: list = [()] * len(rewards)
    for row in sorted((row for row in range(len(rewards)) if met[row]), key=lambda row: times[row]):
        past.setdefault(trajectory[row], []).append(anchor[row])
        context[row] = tuple(past[trajectory[row]])
    total, weights = [0.0] * len(rewards), [0.0] * len(rewards)
    for length in range(1, history + 2):
        has = [used and len(states) >= length for used, states in zip(met, context)]
        shared = [(task, states[-length:]) for task, states in zip(group, context)]
        for rows in _groups(shared, has):
            values = [returns[row] for row in rows]
            if len(rows) == 1 or min(values) == max(values):
                continue
            for row in rows:
                gap = returns[row] - _mean(values)
                compared = gap / (_std(values, statistics.ddof) + statistics.eps) if scale == "std" else gap
                if compared != 0.0:
                    total[row] += (length + 1) ** length_exponent * compared
                    weights[row] += (length + 1) ** length_exponent
    return _tensor([value / (weight + 1e-6) for value, weight in zip(total, weights)], valid)


def tree_values(scores, parent) -> Tensor:
    """A leaf's score; an inner node's mean of its children's values (SPO)."""
    scores, parent = _numbers(scores), _labels(parent)

    def value(node: int) -> float:
        children = [child for child, above in enumerate(parent) if above == node]
        return _mean([value(child) for child in children]) if children else scores[node]

    return torch.tensor([value(node) for node in range(len(scores))], dtype=torch.float64, device="cpu")


def _mean(values: list[float]) -> float:
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def _std(values: list[float], ddof: int) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(len(values) - ddof, 1))


def _tensor(values: list[float], valid: list[bool]) -> Tensor:
    return torch.tensor([value if used else 0.0 for value, used in zip(values, valid)], dtype=torch.float64, device="cpu")
