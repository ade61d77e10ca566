"""Rewards as the papers write them: one response at a time, in float64."""

import math

import torch
from torch import Tensor

from .advantage import _groups, _labels, _numbers, _valid


def cosine_length(correct, lengths, *, max_length, right=(1.0, 0.5), wrong=(-1.0, -0.5), clamp=True) -> Tensor:
    """low + (high - low) (1 + cos(pi n / L)) / 2 (Open-RS)."""
    result = []
    for good, length in zip(correct.tolist(), _numbers(lengths)):
        at_zero, at_most = right if good else wrong
        share = min(length / max_length, 1.0) if clamp else length / max_length
        result.append(at_most + 0.5 * (at_zero - at_most) * (1.0 + math.cos(math.pi * share)))
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def soft_overlong(lengths, *, max_length, buffer, penalty=1.0) -> Tensor:
    """0, (L - buffer - n) / buffer, -1 (DAPO, Eq. 13)."""
    result = []
    for length in _numbers(lengths):
        allowed = max_length - buffer
        share = 0.0 if length <= allowed else (allowed - length) / buffer if length <= max_length else -1.0
        result.append(penalty * share)
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def dast_length(correct, lengths, group, *, slope=-0.5, offset=0.5) -> Tensor:
    """A bonus around the budget p L_right + (1 - p) L_max of the group (DAST)."""
    lengths, correct = _numbers(lengths), correct.tolist()
    result = [0.0] * len(lengths)
    for rows in _groups(_labels(group), [True] * len(lengths)):
        right = [lengths[row] for row in rows if correct[row]]
        share = len(right) / len(rows)
        budget = share * (sum(right) / len(right) if right else 0.0) + (1.0 - share) * max(lengths[row] for row in rows)
        for row in rows:
            excess = (lengths[row] - budget) / budget if budget > 0 else 0.0
            result[row] = max(slope * excess + offset, 0.1) if correct[row] else min(0.9 * excess - 0.1, -0.1)
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def group_length(correct, lengths, group) -> Tensor:
    """0.5 - (n - min) / (max - min), at most 0 for a wrong answer (Kimi k1.5)."""
    lengths, correct = _numbers(lengths), correct.tolist()
    result = [0.0] * len(lengths)
    for rows in _groups(_labels(group), [True] * len(lengths)):
        low, high = min(lengths[row] for row in rows), max(lengths[row] for row in rows)
        for row in rows:
            value = 0.5 - (lengths[row] - low) / (high - low) if high > low else 0.0
            result[row] = value if correct[row] else min(value, 0.0)
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def fewest_calls(calls, correct, group) -> Tensor:
    """The fewest calls among the right answers of the group (OTC, n)."""
    calls, correct = _numbers(calls), correct.tolist()
    result = [math.inf] * len(calls)
    for rows in _groups(_labels(group), [True] * len(calls)):
        enough = min((calls[row] for row in rows if correct[row]), default=math.inf)
        for row in rows:
            result[row] = enough
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def tool_cost(calls, fewest=None, *, max_calls) -> Tensor:
    """cos(m pi / (2 m + c)), or sin(f pi / (2 n)) with f = 2 n m / (m + n) (OTC, Eq. 5 to 7)."""
    result = []
    for place, m in enumerate(_numbers(calls)):
        n = None if fewest is None else float(fewest[place])
        if n is None or (n == 0.0 and m > 0.0):
            result.append(math.cos(m * math.pi / (2.0 * m + max_calls)))
        elif n == 0.0 or math.isinf(n):
            result.append(1.0)
        else:
            f = 2.0 * n * m / (m + n)
            result.append(math.sin(f * math.pi / (2.0 * n)))
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def cost_penalty(rewards, costs, group, *, weights, valid=None) -> Tensor:
    """r - mean r sum_k w_k c_k / max c_k within the group."""
    rewards = _numbers(rewards)
    valid = _valid(valid, rewards)
    result = [0.0] * len(rewards)
    for rows in _groups(_labels(group), valid):
        mean = math.fsum(rewards[row] for row in rows) / len(rows)
        for row in rows:
            share = 0.0
            for k, weight in enumerate(weights):
                most = max(float(costs[other, k]) for other in rows)
                share += float(weight) * float(costs[row, k]) / most if most > 0 else 0.0
            result[row] = rewards[row] - mean * share
    return torch.tensor(result, dtype=torch.float64, device="cpu")


def running_scale(batches, *, center=False, clip=None) -> list[Tensor]:
    """Each batch over the deviation (n - 1) of all numbers up to its end."""
    seen, result = [], []
    for batch in batches:
        seen += _numbers(batch)
        mean = math.fsum(seen) / len(seen) if seen else 0.0
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / max(len(seen) - 1, 1)) or 1.0
        scaled = [(value - (mean if center else 0.0)) / spread for value in _numbers(batch)]
        clipped = [value if clip is None else max(-clip, min(clip, value)) for value in scaled]
        result.append(torch.tensor(clipped, dtype=torch.float64, device="cpu"))
    return result


def return_difference(returns, task, *, trial=None, valid=None) -> Tensor:
    """The next trial's return minus this one's, 0 at the last trial of a task (Retroformer)."""
    returns, task = _numbers(returns), _labels(task)
    valid = _valid(valid, returns)
    times = _labels(trial) if trial is not None else list(range(len(returns)))
    result = [0.0] * len(returns)
    for rows in _groups(task, valid):
        ordered = sorted(rows, key=lambda row: times[row])
        for row, following in zip(ordered, ordered[1:]):
            result[row] = returns[following] - returns[row]
    return torch.tensor(result, dtype=torch.float64, device="cpu")
