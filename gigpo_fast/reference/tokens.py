"""A batch as the reference sees it: trained tokens by number, with plain Python numbers for everything that has no gradient."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Spec = tuple[str, dict[str, Any]]  # a block by its name, with its settings; a setting may be a Spec itself


class Tokens(NamedTuple):
    """The trained tokens of a batch. Lists are indexed by the token's flat position."""

    trained: list[int]
    lp: list[Tensor]  # 0-dim each, differentiable
    old: list[float]
    ref: list[float] | None
    A: list[float]
    H: list[Tensor] | None
    extras: dict[str, list]
    sequence: list[int]  # which sequence a token belongs to
    members: dict[int, list[int]]  # the trained tokens of each sequence
    long: dict[int, float]  # how many trained tokens each whole sequence has

    def inside(self, t: int) -> list[int]:
        """The trained tokens of t's sequence."""
        return self.members[self.sequence[t]]

    def together(self, t: int, name: str) -> list[int]:
        """The trained tokens with t's number in extras[name]."""
        labels = self.extras[name]
        return [other for other in self.trained if labels[other] == labels[t]]

    def delta(self, t: int) -> Tensor:
        """log pi - log pi_old."""
        return self.lp[t] - self.old[t]


def value(x: Tensor) -> float:
    """A number without its gradient."""
    return float(x.detach())


def exp(x: float) -> float:
    """e^x, infinite where math.exp would raise."""
    return math.exp(x) if x < 709.0 else float(torch.tensor(x, dtype=torch.float64, device="cpu").exp())


def bounded(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """x, or the bound as a constant. NaN is not hidden."""
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if value(x) < low:
        return torch.full_like(x, low)
    return torch.full_like(x, high) if value(x) > high else x


def pair(bound: float | tuple[float, float] | None) -> tuple[float, float]:
    """A bound on both sides."""
    if bound is None:
        return -math.inf, math.inf
    return bound if isinstance(bound, tuple) else (-bound, bound)


def mean(numbers: list[float]) -> float:
    """Of no numbers 0."""
    return math.fsum(numbers) / len(numbers) if numbers else 0.0
