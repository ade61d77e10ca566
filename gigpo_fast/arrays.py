"""Lists and NumPy arrays where tensors are meant: made tensors in one place, at the door of the packages that take rows of rollouts.

The same door reads switches, which are True or False and nothing else.

A list has no dtype, so its floats become float32, its ints int64 and its booleans bool, whatever torch's defaults are; an array keeps
its dtype. Both go to the device of the tensors beside them, else to the CPU.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks


def take_arrays(namespace: dict[str, Any]) -> None:
    """Let every public function of a package take lists and arrays for its tensors: `take_arrays(globals())` at the end of __init__."""
    for name in namespace["__all__"]:
        if inspect.isfunction(namespace[name]) and not hasattr(namespace[name], "takes_arrays"):
            namespace[name] = _taking(namespace[name], namespace["__name__"])


def is_array(value: Any) -> bool:
    """Whether a value is a NumPy array (or a pandas column), found without importing either."""
    return type(value).__name__ in ("ndarray", "Series") and hasattr(value, "__array__")


def as_tensor(function: str, name: str, value: Any, device: torch.device) -> Tensor:
    """The tensor that a list or an array is; raises for what holds no numbers."""
    fix = "pass numbers, one list a row where there are two dimensions, all of one length"
    try:
        if is_array(value):
            value = value.to_numpy() if hasattr(value, "to_numpy") else value
            return torch.from_numpy(value.copy()).to(device)  # a copy: views may run backwards or be read-only
        if value and all(isinstance(item, Tensor) for item in value):
            return torch.stack(list(value))  # on the device where they are, without waiting for it
        found = torch.tensor(value, device="cpu")
        if found.dtype.is_floating_point and found.dtype != torch.float32:  # torch's default dtype, or that of NumPy's scalars
            found = torch.tensor(value, device="cpu", dtype=torch.float32)
        return found.to(device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shown = f"{type(value).__name__} {checks.describe(value)} ({str(error).splitlines()[0]})"
        checks.fail(function, name, "a tensor, or a list or array of numbers", shown, fix, error=TypeError)


def _taking(function: Callable, package: str) -> Callable:
    parameters = inspect.signature(function).parameters
    order, wanted = tuple(parameters), {name for name, parameter in parameters.items() if _is_tensor(parameter.annotation)}
    switches = [name for name, parameter in parameters.items() if parameter.annotation is bool]

    def ready(name: str, value: Any, device: torch.device) -> Any:
        return as_tensor(function.__name__, name, value, device) if name in wanted and _readable(value) else value

    @functools.wraps(function)
    def taking(*given: Any, **keywords: Any) -> Any:
        if any(map(_readable, given)) or any(map(_readable, keywords.values())):
            everything = (*given, *keywords.values())
            device = next((value.device for value in everything if isinstance(value, Tensor)), torch.device("cpu"))
            given = tuple(ready(name, value, device) for name, value in zip(order, given)) + given[len(order) :]
            keywords = {name: ready(name, value, device) for name, value in keywords.items()}
        for name in switches:
            if name in keywords:
                keywords[name] = checks.switch(function.__name__, name, keywords[name])
        return function(*given, **keywords)

    taking.takes_arrays = True
    taking.__module__ = package  # where this one is found, by pickle as well
    return taking


def _readable(value: Any) -> bool:
    return type(value) in (list, tuple) or is_array(value)  # exactly: a result of ours is a tuple too, and no list of numbers


def _is_tensor(annotation: Any) -> bool:
    """Whether a parameter is a tensor and no label: labels are lists in their own right."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation) if union else (annotation,))
    return Tensor in members and members <= {Tensor, float, type(None)}
