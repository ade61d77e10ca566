"""Tensors made under torch.inference_mode, as rollouts make them, in functions that are differentiated."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import checks

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def takes_inference_tensors(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a differentiable function take constants that were made under inference mode: masks, token ids, old log-probs, frozen heads.

    Autograd refuses to save such a tensor, in words that name no argument. The function gets a view of the same memory that can be
    saved; nothing is copied. One that requires a gradient raises, because the view would cut it off.
    """

    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: _Parameters.args, **keywords: _Parameters.kwargs) -> _Result:
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return function(*args, **keywords)
        args = [savable(function.__name__, name, value) for name, value in zip(names, args)] + list(args[len(names) :])
        return function(*args, **{name: savable(function.__name__, name, value) for name, value in keywords.items()})

    return wrapped


def savable(function: str, name: str, value: Any) -> Any:
    """`value` with views in the place of inference tensors, also inside of named tuples and dicts; itself where there are none."""
    if isinstance(value, Tensor):
        return _view(function, name, value) if value.is_inference() else value
    if isinstance(value, dict):
        return {key: savable(function, f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(savable(function, f"{name}.{field}", item) for field, item in zip(value._fields, value)))
    return value


def _view(function: str, name: str, value: Tensor) -> Tensor:
    if value.requires_grad and torch.is_grad_enabled():
        expected, got = "a tensor that autograd can record", f"{checks.describe(value)} made under torch.inference_mode"
        checks.fail(function, name, expected, got, "clone it, or make it outside of inference mode", error=RuntimeError)
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_neg():
        return value.clone()
    place = (value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
    return torch.empty(0, dtype=value.dtype, device=value.device).set_(*place)
