"""Schedules: a coefficient as a function of the step, and objectives rebuilt with other numbers.

An objective's numbers travel in a tensor of their own (see block.write), so one that differs in numbers alone has the same
structure: nothing is traced, compiled or registered again.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from .. import checks
from ..settings import Settings, number
from .block import Block
from .policy import PolicyObjective

Schedule = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Constant(Settings):
    """value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclasses.dataclass(frozen=True)
class Linear(Settings):
    """From `start` at step 0 to `end` at step `steps`, constant after."""

    start: float
    end: float
    steps: float = number(above=0, fix="it is the step at which `end` is reached")

    def __call__(self, step: int) -> float:
        share = min(max(step / self.steps, 0.0), 1.0)
        return self.start + (self.end - self.start) * share


@dataclasses.dataclass(frozen=True)
class Piecewise(Settings):
    """Straight lines through `points`, pairs (step, value) in increasing steps; constant before the first and after the last.

    OThink-MR1's coefficient (arXiv 2503.16081) is Piecewise(((0, middle), (w, least), (t, most))).
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        try:
            points = tuple((checks.real(step), checks.real(value)) for step, value in self.points)
        except (TypeError, ValueError):
            points = ((None, None),)
        steps = [step for step, _ in points]
        if not steps or None in sum(points, ()) or any(a >= b for a, b in zip(steps, steps[1:])):
            raise ValueError(f"Piecewise: points must be (step, value) pairs in increasing steps, got {self.points!r}")
        object.__setattr__(self, "points", points)

    def __call__(self, step: int) -> float:
        before = self.points[0]
        for after in self.points:
            if step <= after[0]:
                if after[0] == before[0]:
                    return float(after[1])
                return before[1] + (after[1] - before[1]) * max(step - before[0], 0) / (after[0] - before[0])
            before = after
        return float(before[1])


@dataclasses.dataclass(frozen=True)
class StepAnneal(Settings):
    """max(start - decrement * (step // every), floor): KDRL's annealing (arXiv 2506.02208) lowers 5e-3 by 5e-5 a step to 1e-3."""

    start: float
    decrement: float
    floor: float
    every: int = number(1, low=1, fix="1 lowers the value at each step")

    def __call__(self, step: int) -> float:
        return max(self.start - self.decrement * (step // self.every), self.floor)


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Settings):
    """From `start` straight to `peak` at step `warmup`, then by half a cosine to `end`, `decay` steps later (CHORD, arXiv 2508.11408)."""

    start: float
    peak: float
    end: float
    warmup: float = number(low=0, fix="0 begins at the peak")
    decay: float = number(above=0, fix="it is how many steps the fall takes")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        share = min((step - self.warmup) / self.decay, 1.0)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """Objectives over time: Scheduled(objective, {"divergence.coefficient": Linear(0.04, 0.0, 1000)})(step)."""

    objective: PolicyObjective
    schedules: Mapping[str, Schedule]

    def __hash__(self) -> int:  # a mapping has none
        return hash((self.objective, tuple(sorted(self.schedules))))

    def __call__(self, step: int) -> PolicyObjective:
        """The objective with every scheduled number at its value of this step."""
        found = self.objective
        for path, schedule in self.schedules.items():
            found = with_value(found, path, schedule(step))
        return found


def with_value(objective: PolicyObjective, path: str, value: float) -> PolicyObjective:
    """The objective with one number replaced; `path` names its field: "surrogate.low", "divergence.0.coefficient" of the first of several.

    Raises for a path that does not lead to a number. The structure stays as it was.
    """
    found = _replaced(objective, path.split("."), value, path)
    if found.structure != objective.structure:
        raise ValueError(
            f"with_value: {path!r} must name a number that is already there, or the structure changes; compose a new objective"
        )
    return found


def _replaced(block: Any, names: list[str], value: float, path: str) -> Any:
    name, rest = names[0], names[1:]
    if isinstance(block, tuple) and name.isdigit() and int(name) < len(block):
        inner = block[int(name)]
        return tuple(_exchange(inner, rest, value, path) if at == int(name) else item for at, item in enumerate(block))
    fields = [field.name for field in dataclasses.fields(block)] if isinstance(block, Block) else []
    if name not in fields:
        raise ValueError(f"with_value: path must lead through {fields or 'an index of the tuple'} at {name!r}, got {path!r}")
    return dataclasses.replace(block, **{name: _exchange(getattr(block, name), rest, value, path)})


def _exchange(inner: Any, rest: list[str], value: float, path: str) -> Any:
    if rest:
        return _replaced(inner, rest, value, path)
    if not isinstance(inner, float):
        raise ValueError(f"with_value: path must lead to a number, got {path!r}, which is {inner!r}")
    return value
