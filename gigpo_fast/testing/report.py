"""What was compared, and the verdict: an AssertionError that lists every wrong quantity, or a report of one line."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks

VALUE_FACTOR, GRADIENT_FACTOR = 2.0, 3.0  # how many times plain torch's own error


class WrongReturn(AssertionError):
    """What was called returned something else than what can be compared."""


class Comparison(NamedTuple):
    """One quantity of one case."""

    case: str
    quantity: str
    error: float  # largest difference from the float64 reference
    allowed: float
    got: float = math.nan  # where the error is largest, and what the reference has there
    expected: float = math.nan
    place: tuple[int, ...] = ()

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
    error, place = distance(got, oracle)
    values = (float(got.detach()[place]), float(oracle.detach()[place])) if oracle.numel() else (0.0, 0.0)
    own = distance(plain, oracle)[0]  # NaN where plain torch fails: that allows nothing
    return Comparison(case, quantity, error, (0.0 if math.isnan(own) else factor * own) + floor, *values, place)


def distance(value: Tensor, oracle: Tensor) -> tuple[float, tuple[int, ...]]:
    """The largest absolute difference and its place; NaN if there is one. Where the reference is infinite or NaN, so must the value be."""
    value, oracle = value.detach().cpu().double(), oracle.detach().cpu().double()
    if not oracle.numel():
        return 0.0, ()
    same = (value == oracle) | (value.isnan() & oracle.isnan())
    difference = torch.where(same, 0.0, (value - oracle).abs())
    flat = int(torch.where(difference.isnan(), math.inf, difference).argmax())
    flat = torch.tensor(flat, dtype=torch.int64, device="cpu")
    place = tuple(int(index) for index in torch.unravel_index(flat, oracle.shape)) if oracle.dim() else ()
    return float(difference[place]), place


def judged(function: str, comparisons: list[Comparison], hints: Mapping[str, str] = {}) -> Report:
    """A report if everything is right, else an AssertionError with one line a mistake, whatever the number of dtypes that show it."""
    wrong = [comparison for comparison in comparisons if comparison.share > 1]
    if not wrong:
        return Report(tuple(comparisons))
    mistakes: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in wrong:
        name = comparison.case.rpartition(", ")[0] or comparison.case
        mistakes.setdefault((name, comparison.quantity.partition(" must be ")[0]), []).append(comparison)
    lines, hinted = [], set()
    for (name, _), found in mistakes.items():
        dtypes = ", ".join(c.case.rpartition(", ")[2] for c in found if c.case != name)
        lines.append(f"  {name}{dtypes and f' ({dtypes})'}: {_told(found[0])}")
        base = name.partition(", scale")[0]
        if base in hints and base not in hinted:  # once a case
            hinted.add(base)
            lines[-1] += f"; usually {hints[base]}"
    count = f"{len(wrong)} of {len(comparisons)} comparisons with the reference are wrong, {len(mistakes)} mistakes"
    raise AssertionError(f"{function}: {count}\n" + "\n".join(lines))


def _told(c: Comparison) -> str:
    if math.isinf(c.error) and math.isnan(c.got):
        return c.quantity  # it raised, or has another shape or dtype
    place = f" at {list(c.place)}" if c.place else ""
    return f"{c.quantity}: got {c.got:.6g}, expected {c.expected:.6g}{place} (error {c.error:.3g}, allowed {c.allowed:.3g})"
