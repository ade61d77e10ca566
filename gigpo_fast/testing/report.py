"""What was compared, and the verdict: an AssertionError that lists every wrong quantity, or a report of one line."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks

VALUE_FACTOR, GRADIENT_FACTOR = 2.0, 3.0  # how many times plain torch's own error


class Comparison(NamedTuple):
    """One quantity of one case."""

    case: str
    quantity: str
    error: float  # largest difference from the float64 reference
    allowed: float

    @property
    def share(self) -> float:
        """The error as a share of what is allowed; above 1 is wrong. NaN is wrong."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0 and not math.isnan(self.error) else math.inf


class Report(NamedTuple):
    """Everything that was compared. `str(report)` is one line."""

    comparisons: tuple[Comparison, ...]

    @property
    def worst(self) -> Comparison:
        """The comparison that used most of its tolerance."""
        return max(self.comparisons, key=lambda comparison: comparison.share)

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of the cases, in order."""
        return tuple(dict.fromkeys(comparison.case for comparison in self.comparisons))

    def __str__(self) -> str:
        worst = self.worst
        return (
            f"{len(self.comparisons)} comparisons in {len(self.cases)} cases, worst error {worst.share:.2f} of its tolerance "
            f"({worst.case}: {worst.quantity})"
        )


def chosen(function: str, table: Iterable[str], cases: Iterable[str] | None) -> list[str]:
    """The cases asked for, all of them by default; an unknown name raises."""
    if isinstance(cases, str):
        checks.fail(function, "cases", "a list of names", cases, "write cases=[...]", error=TypeError)
    wanted = list(table) if cases is None else list(cases)
    unknown = sorted(set(wanted) - set(table))
    if unknown or not wanted:
        checks.fail(function, "cases", f"some of {sorted(table)}", unknown, "correct the name, or leave cases None for all")
    return wanted


def compared(
    case: str, quantity: str, got: Any, oracle: Tensor, plain: Tensor, factor: float, floor: float, dtype: torch.dtype
) -> Comparison:
    """The error of `got` against `oracle`; allowed are `factor` times plain torch's error and `floor`."""
    if not isinstance(got, Tensor) or got.shape != oracle.shape or got.dtype != dtype:
        return Comparison(case, f"{quantity} must be {tuple(oracle.shape)} {dtype}, got {checks.describe(got)}", math.inf, 0.0)
    return Comparison(case, quantity, distance(got, oracle), factor * distance(plain, oracle) + floor)


def distance(value: Tensor, oracle: Tensor) -> float:
    """The largest absolute difference; NaN if there is one."""
    difference = value.detach().cpu().double() - oracle.detach().cpu().double()
    return float(difference.abs().max()) if difference.numel() else 0.0


def judged(function: str, comparisons: list[Comparison]) -> Report:
    """A report if everything is right, else an AssertionError."""
    wrong = [comparison for comparison in comparisons if comparison.share > 1]
    if wrong:
        lines = [f"  {c.case}: {c.quantity}: error {c.error:.3g}, allowed {c.allowed:.3g}" for c in wrong]
        raise AssertionError(
            f"{function}: {len(wrong)} of {len(comparisons)} comparisons with the reference are wrong\n" + "\n".join(lines)
        )
    return Report(tuple(comparisons))
