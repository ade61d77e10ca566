"""`check_advantages`: GiGPO advantages against the float64 reference, over a table of cases."""

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..reference.advantage import gigpo_advantages
from .report import VALUE_FACTOR, Comparison, Report, WrongReturn, chosen, compared, judged

_QUANTITIES = ("advantages", "episode", "step", "step_returns")
_ROUNDINGS = {torch.float64: 512.0}  # plain torch in float64 differs from the reference by a few roundings, too
_FEW = 8.0


def _shuffled(b):
    order = torch.randperm(b.rewards.numel(), generator=torch.Generator(device="cpu").manual_seed(5), device="cpu")
    b.step = b.times
    for key in ("rewards", "trajectory", "group", "anchor", "valid", "step"):
        if getattr(b, key) is not None:
            setattr(b, key, getattr(b, key)[order])


def _huge_labels(b):
    b.group = 2**40 - 3 * b.group
    b.trajectory = -(2**33) + 7 * b.trajectory
    b.anchor = 2**35 - b.anchor


def _equal(b):
    rows = torch.arange(36, device="cpu")
    # 0.1 is not a binary fraction: a mean of equal ones rounds
    b.rewards = torch.tensor((0.0, 0.0, 0.1), dtype=torch.float64, device="cpu").repeat(12)
    b.trajectory, b.group, b.anchor, b.times = rows // 3, rows // 12, rows % 3, rows % 3


def _invalid(b):
    b.valid = torch.arange(len(b.rewards), device="cpu") % 4 != 1
    b.rewards[~b.valid] = math.nan


ADVANTAGE_CASES: dict[str, Callable[[SimpleNamespace], object]] = {
    "rows in time order": lambda b: None,
    "rows in any order, with steps": _shuffled,
    "huge and negative labels": _huge_labels,
    "equal rewards": _equal,
    "one trajectory a task": lambda b: setattr(b, "group", b.trajectory.clone()),
    "a task with one trajectory beside others": lambda b: b.group.masked_fill_(b.trajectory == 0, 99),
    "one anchor for all": lambda b: b.anchor.fill_(0),
    "no anchor twice": lambda b: setattr(b, "anchor", torch.arange(len(b.rewards), device="cpu")),
    "success or nothing": lambda b: setattr(b, "rewards", (b.rewards > 1.5).to(b.rewards.dtype)),
    "large common reward": lambda b: b.rewards.add_(1000.0),
    "invalid rows hold NaN": _invalid,
}  # fmt: skip

# What usually makes advantages fail a case.
HINTS = {
    "rows in time order": "the standard deviation's n - 1 (ddof), a missing discount, or rows counted where trajectories are meant",
    "rows in any order, with steps": "returns along the rows as they stand: sort by step within the trajectory",
    "huge and negative labels": "labels used as indices: number them first",
    "equal rewards": "a mean of equal numbers that is not that number, divided by a tiny deviation",
    "one trajectory a task": "a group of one: it has nothing to be compared with, so its advantage is 0",
    "a task with one trajectory beside others": "a group of one: it has nothing to be compared with, so its advantage is 0",
    "one anchor for all": "states of different tasks compared: the group belongs to the state's label",
    "no anchor twice": "a state seen once: it is compared with itself, so its advantage is 0",
    "success or nothing": "a deviation of 0 that divides",
    "large common reward": "a variance as mean of squares less square of the mean",
    "invalid rows hold NaN": "invalid rows multiplied by 0: NaN * 0 is NaN; use torch.where before anything else",
}


def check_advantages(
    fn: Callable[..., Any],
    *,
    gamma: float = 0.95,
    scale: str | None | tuple[str | None, ...] = (None, "std"),
    dtypes: Iterable[torch.dtype] = (torch.float64, torch.float32),
    cases: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> Report:
    """Compare GiGPO advantages (default statistics) with the reference; raise AssertionError with one line for each mistake.

    `fn` is called as fn(rewards, trajectory, group, anchor, gamma=gamma), with scale="std" where `scale` says so (by default without
    it and with it; None for a function that has no scale), and with step= and
    valid= where a case has them. It returns the advantages (S,), or an object with `.advantages` and perhaps `.episode`, `.step`
    and `.step_returns`, which are then compared as well. `cases` picks from ADVANTAGE_CASES by name.
    """
    comparisons: list[Comparison] = []
    checks.process("check_advantages")
    for name in chosen("check_advantages", ADVANTAGE_CASES, cases):
        for each in scale if isinstance(scale, tuple) else (scale,):
            for dtype in dtypes:
                comparisons += _compare(fn, gamma, each, name, dtype, torch.device(device))
    return judged("check_advantages", comparisons, HINTS)


def _draw(name: str) -> SimpleNamespace:
    """Three tasks of four trajectories with one to five steps in six states."""
    g = torch.Generator(device="cpu").manual_seed(sum(map(ord, name)))
    lengths = torch.randint(1, 6, (12,), generator=g, device="cpu")
    steps, number = int(lengths.sum()), torch.arange(12, device="cpu")
    batch = SimpleNamespace(
        rewards=torch.randn(steps, generator=g, dtype=torch.float64, device="cpu"),
        trajectory=torch.repeat_interleave(number, lengths), group=torch.repeat_interleave(number // 4, lengths),
        anchor=torch.randint(6, (steps,), generator=g, device="cpu"),
        times=torch.cat([torch.arange(int(length), device="cpu") for length in lengths]), step=None, valid=None,
    )  # fmt: skip
    ADVANTAGE_CASES[name](batch)
    return batch


def _compare(fn, gamma: float, scale: str | None, name: str, dtype: torch.dtype, device: torch.device) -> list[Comparison]:
    said = "" if scale is None else f", scale={scale!r}"
    b, case = _draw(name), f"{name}{said}, {str(dtype).removeprefix('torch.')}"
    rewards = b.rewards.to(dtype)
    keywords: dict[str, Any] = {key: getattr(b, key) for key in ("step", "valid") if getattr(b, key) is not None}
    labels = (b.trajectory, b.group, b.anchor)
    oracle = gigpo_advantages(rewards.double(), *labels, gamma=gamma, scale=scale, **keywords)
    plain = _plain(rewards, b, gamma, scale)
    moved = {key: value.to(device) for key, value in keywords.items()} | ({} if scale is None else {"scale": scale})
    try:
        result = fn(rewards.to(device), *(label.to(device) for label in labels), gamma=gamma, **moved)
    except Exception as error:  # noqa: BLE001 - whatever fn raises is a finding
        return [Comparison(case, f"raised {type(error).__name__}: {error}", math.inf, 0.0)]
    if not isinstance(getattr(result, "advantages", result), Tensor):
        raise WrongReturn(
            "check_advantages: fn must return a tensor of advantages, or an object with .advantages, "
            f"got {type(result).__name__} {checks.describe(result)}; torch.tensor makes one of a list"
        )
    found = (
        {"advantages": result} if isinstance(result, Tensor) else {key: getattr(result, key) for key in _QUANTITIES if hasattr(result, key)}
    )
    rounding = _ROUNDINGS.get(dtype, _FEW) * torch.finfo(dtype).eps / 2
    comparisons = []
    for key, want, own in zip(_QUANTITIES, oracle, plain):
        if key in found:
            floor = rounding * float(want.abs().max())
            comparisons.append(compared(case, key, found[key], want, own, VALUE_FACTOR, floor, dtype))
    return comparisons


def _plain(rewards: Tensor, b: SimpleNamespace, gamma: float, scale: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in torch, in the dtype of `rewards`: what anybody would write first."""
    rows = torch.arange(len(rewards), device="cpu") if b.valid is None else b.valid.nonzero().squeeze(1)
    order = rows if b.step is None else rows[torch.argsort(b.step[rows], stable=True)]
    returns, episode, micro = torch.zeros_like(rewards), torch.zeros_like(rewards), torch.zeros_like(rewards)
    following: dict[int, Tensor] = {}
    for row in reversed(order.tolist()):
        name = int(b.trajectory[row])
        following[name] = returns[row] = rewards[row] + gamma * following.get(name, rewards.new_zeros(()))

    def centred(values: Tensor) -> Tensor:
        if len(values) < 2 or bool((values == values[0]).all()):
            return torch.zeros_like(values)
        return (values - values.mean()) / (values.std() + 1e-6 if scale == "std" else 1.0)

    for group in b.group[rows].unique().tolist():
        inside = rows[b.group[rows] == group]
        names = b.trajectory[inside].unique()
        scores = centred(torch.stack([rewards[inside[b.trajectory[inside] == name]].sum() for name in names]))
        for name, score in zip(names, scores):
            episode[inside[b.trajectory[inside] == name]] = score
        for state in b.anchor[inside].unique():
            same = inside[b.anchor[inside] == state]
            micro[same] = centred(returns[same])
    return episode + micro, episode, micro, returns
