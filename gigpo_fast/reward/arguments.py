"""Reading the arguments of the reward functions: numbers that belong to rows, and which rows count."""

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments


def rows(function: str, valid: Tensor | None, **values: Any) -> tuple[Tensor, ...]:
    """Which rows are valid, then each named argument as (S,) float64, 0 where not valid."""
    name, first = next(iter(values.items()))
    counted = arguments.validity(function, valid, name, first)
    return counted, *(arguments.scores(function, key, value, counted) for key, value in values.items())


def result(value: Tensor, valid: Tensor, *sources: Any) -> Tensor:
    """float32, or float64 if a source is; 0 where not valid."""
    return torch.where(valid, value, 0.0).to(arguments.result_dtype(*sources))


def real(function: str, name: str, value: Any, fix: str) -> float:
    """A real number, infinity included."""
    found = checks.real(value)
    if found is None:
        checks.fail(function, name, "a number", value, fix, error=ValueError if isinstance(value, float) else TypeError)
    return found


def pair(function: str, name: str, value: Any, fix: str) -> tuple[float, float]:
    """Two real numbers, in a tuple or a list."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        checks.fail(function, name, "two numbers", value, fix, error=TypeError)
    return real(function, f"{name}[0]", value[0], fix), real(function, f"{name}[1]", value[1], fix)


def flags(function: str, name: str, value: Any, valid: Tensor) -> Tensor:
    """(S,) bool, False where not valid. Numbers are refused: say what counts as true."""
    if isinstance(value, Tensor) and value.dtype != torch.bool:
        checks.fail(function, name, f"{tuple(valid.shape)} bool", value, f"say what counts, for example {name} > 0.5", error=TypeError)
    checks.tensor(function, name, value, shape=tuple(valid.shape), device=valid.device, fix="pass one bool a row")
    return value & valid
