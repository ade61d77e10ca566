"""Reading the arguments of the advantage functions: labels, scores, steps and which rows count.

Scores are worked on in float64 whatever they come in, and rounded once at the end. Rows that are not valid are zeroed here, on
entry, so that nothing stored in them can reach a result.
"""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..arrays import as_tensor, is_array
from ..values import all_finite

_SHOWN = 8  # rows named in a message


def result_dtype(*values: Any) -> torch.dtype:
    """float64 if any of the values is, else float32."""
    return torch.float64 if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values) else torch.float32


def validity(function: str, valid: Tensor | None, name: str, like: Any) -> Tensor:
    """(S,) bool, True everywhere for None; S is the length of `like`, the argument called `name`."""
    checks.tensor(function, name, like, shape=(None,), fix="pass one score a row")
    if valid is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return checks.mask(function, valid, tuple(like.shape), like.device, name="valid")


def rows_of_labels(function: str, name: str, value: Any) -> int:
    """How many labels there are, whatever holds them."""
    if isinstance(value, Tensor):
        checks.tensor(function, name, value, shape=(None,), fix="pass one label a row")
    elif not hasattr(value, "__len__"):
        fix = "pass one label a row"
        checks.fail(function, name, "an integer tensor or a list of labels", type(value).__name__, fix, error=TypeError)
    return len(value)


def scores(function: str, name: str, value: Any, valid: Tensor) -> Tensor:
    """(S,) float64, detached, 0 where not valid."""
    checks.tensor(function, name, value, shape=tuple(valid.shape), device=valid.device, fix="pass one score a row")
    if value.is_complex():
        checks.fail(function, name, "real", value, "pass one real score a row", error=TypeError)
    finite = not checks.values_wanted(value, valid) or all_finite(value)  # all rows, before they are converted: one cheap read
    values = torch.where(valid, value.detach(), 0).to(torch.float64)
    if not finite:
        fail_at(
            function,
            name,
            ~values.isfinite(),
            "finite in valid rows",
            "not finite",
            "set valid=False in rows without a score, or correct the reward function",
        )
    return values


def finite(function: str, name: str, values: Tensor, fix: str) -> None:
    """Refuse rows that are not finite, where reading them waits for no device: for arguments of which every row counts."""
    if checks.values_wanted(values) and not all_finite(values):
        fail_at(function, name, ~values.isfinite(), "finite", "not finite", fix)


def labels(function: str, name: str, value: Any, valid: Tensor, *, as_numbers: bool = False) -> Tensor:
    """(S,) int64 that are equal where the labels are: an integer tensor, or a list or array of anything hashable; never floats.

    Integers stay as they are, anything else is numbered; with `as_numbers`, where two arguments share their labels, it is refused.
    """
    from ..anchor.labels import FIX as fix
    from ..anchor.labels import numbered  # one reading of labels, here and in group_states

    if isinstance(value, Tensor):
        checks.tensor(function, name, value, shape=tuple(valid.shape), dtypes=checks.INTEGERS, device=valid.device, fix=fix)
        return value.to(torch.int64)
    checks.not_a_result(function, name, value)  # StateGroups, say
    if not is_array(value) and not isinstance(value, (list, tuple)):
        checks.fail(function, name, "an integer tensor or a list of labels", type(value).__name__, fix, error=TypeError)
    if len(value) != valid.shape[0]:
        checks.fail(function, name, f"{valid.shape[0]} labels long", len(value), "pass one label a row")
    value = value.tolist() if is_array(value) else value
    used = valid.tolist()
    filler = next((label for label, wanted in zip(value, used) if wanted), 0)
    kept = [label if wanted else filler for label, wanted in zip(value, used)]
    if all(issubclass(kind, Integral) and kind is not bool for kind in set(map(type, kept))):
        try:
            return torch.tensor(kept, dtype=torch.int64, device="cpu").to(valid.device)  # as they are: -1 may mean something
        except (OverflowError, RuntimeError, ValueError):  # beyond int64: names all the same
            pass
    if as_numbers:
        fix = "its labels are those of another argument, so they must be numbers: group_states of both in one call gives them"
        checks.fail(function, name, "integers", f"{type(value[0]).__name__} {checks.describe(value[0])} in row 0", fix, error=TypeError)
    return numbered(function, name, kept).to(valid.device)


def steps(function: str, value: Any, valid: Tensor) -> Tensor | None:
    """(S,) int64, the place of each row in its trajectory; None where the rows stand in time order."""
    if value is None:
        return None
    fix = "number the steps of a trajectory with integers that grow with time"
    if is_array(value) or type(value) in (list, tuple):
        value = as_tensor(function, "step", value, valid.device)
    checks.tensor(function, "step", value, shape=tuple(valid.shape), dtypes=checks.INTEGERS, device=valid.device, fix=fix)
    return value.to(torch.int64)


def discount(function: str, gamma: Any, name: str = "gamma") -> float:
    """A discount factor in [0, 1]."""
    fix = f"pass a number between 0 and 1, for example {name}=0.95"
    value = checks.number(function, name, gamma, at_least=0.0, fix=fix)
    if value > 1.0:
        checks.fail(function, name, "in [0, 1]", gamma, fix)
    return value


def fail_outside(
    function: str, argument: str, values: Tensor, counted: Tensor | None, low: int, high: int, expected: str, got: str, fix: str
) -> None:
    """`fail_at` for integers that must lie in [low, high), where the range of them all does not settle it."""
    if values.numel():
        least, most = torch.aminmax(values)
        if least.item() < low or most.item() >= high:
            wrong = (values < low) | (values >= high)
            fail_at(function, argument, (wrong if counted is None else wrong & counted).flatten(), expected, got, fix)


def fail_at(function: str, argument: str, wrong: Tensor, expected: str, got: str, fix: str) -> None:
    """Raise if any row is `wrong`, naming the first few. Reads values: call it where `checks.values_wanted` says so."""
    if not bool(wrong.any()):
        return
    rows = wrong.nonzero().flatten().tolist()
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise ValueError(f"{function}: {argument} must be {expected}, got {got} in rows {', '.join(map(str, rows[:_SHOWN]))}{more}; {fix}")
