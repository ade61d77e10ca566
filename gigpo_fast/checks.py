"""Argument checks with one message form: function, argument, expected, got, and what to do.

Metadata checks (shape, dtype, device) always run and never wait for a device. Checks of values run wherever reading a value
costs no wait, which is on a CPU; on other devices under full validation only.
"""

import contextlib
import contextvars
import numbers
import operator
import os
from typing import Any, NoReturn

import torch
from torch import Tensor

_validation: contextvars.ContextVar[str | None] = contextvars.ContextVar("gigpo_fast_validation", default=None)
_LEVELS = ("auto", "full", "metadata")
_PROCESS = os.getpid()  # of this import: in a forked child it is the parent's
_MODES = torch._C._TorchDispatchModeKey
_PLAIN = Tensor.__torch_dispatch__  # what a tensor has whose operations run at once, on memory of its own


@contextlib.contextmanager
def validation(level: str):
    """Set how much is checked inside a `with` block.

    "auto": shapes, dtypes and devices everywhere, and values wherever no device has to be waited for (CPU tensors, lists).
    "full": values on every device, for debugging. "metadata": no value anywhere.
    The default outside any block is the environment variable GIGPO_FAST_VALIDATE, else "auto".
    """
    if level not in _LEVELS:
        raise ValueError(f'validation: level must be one of {_LEVELS}, got {level!r}; use "full" while debugging')
    token = _validation.set(level)
    try:
        yield
    finally:
        _validation.reset(token)


def values_wanted(*tensors: Tensor | None) -> bool:
    """True where the values of these tensors (those that are not None) are to be checked.

    Never where they cannot be read: while a compiler, a transform or an export traces, and on tensors without memory.
    """
    if torch.compiler.is_compiling():
        return False
    level = _level()
    if level == "metadata" or _traced():
        return False
    for tensor in tensors:  # a plain loop: this runs several times in calls of a fifth of a millisecond
        if tensor is not None and not _readable(tensor, anywhere=level == "full"):
            return False
    return True


def full_validation() -> bool:
    """True where checks that cost a wait, a message between ranks or more than a few percent are wanted too."""
    return not torch.compiler.is_compiling() and _level() == "full"


def _level() -> str:
    level = _validation.get()
    if level is None:
        level = os.environ.get("GIGPO_FAST_VALIDATE", "auto")
        if level not in _LEVELS:
            raise ValueError(f"validation: GIGPO_FAST_VALIDATE must be one of {_LEVELS}, got {level!r}; unset it or correct it")
    return level


def _traced() -> bool:
    """True where operations are recorded or transformed, so that a value that is asked for is an error or a lie."""
    recorded = torch._C._get_dispatch_mode(_MODES.PROXY) or torch._C._get_dispatch_mode(_MODES.FAKE)
    return recorded is not None or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def _readable(tensor: Tensor, *, anywhere: bool) -> bool:
    """A subclass that answers operations itself may have no values (fake tensors) or ask other ranks for them (DTensor)."""
    if type(tensor) is not Tensor and type(tensor).__torch_dispatch__ is not _PLAIN:
        return False
    return tensor.is_cpu or (anywhere and not tensor.is_meta)


def fail(function: str, argument: str, expected: str, got: Any, fix: str, *, error: type[Exception] = ValueError) -> NoReturn:
    """Raise the one message form. `got` is described (shape, dtype, device) when it is a tensor."""
    raise error(f"{function}: {argument} must be {expected}, got {describe(got)}; {fix}")


def process(function: str) -> None:
    """Refuse a forked child that would run torch's parallel loops: threads do not come along in a fork, and it would wait for ever.

    `tensor` asks this of every tensor on a CPU, so that all functions refuse before their first loop. On one thread all is well.
    """
    if os.getpid() != _PROCESS and torch.get_num_threads() > 1:
        fail(
            function,
            "process",
            "the one that imported gigpo_fast, or run on one thread",
            "a forked child: threads do not survive os.fork",
            'call torch.set_num_threads(1) in the child, or start processes by "spawn"',
            error=RuntimeError,
        )


def describe(value: Any) -> str:
    """A short description of a value for a message: tensors by shape, dtype and device, others by repr."""
    if isinstance(value, Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{device}"
    if isinstance(value, str) and " " in value:  # already a description
        return value
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def tensor(
    function: str,
    name: str,
    value: Any,
    *,
    shape: tuple[int | None, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
    fix: str = "pass a tensor of that shape and dtype",
) -> Tensor:
    """Check one tensor argument; None in `shape` stands for any length. Shapes must be equal: nothing is broadcast."""
    if not isinstance(value, Tensor):
        not_a_result(function, name, value)
        fail(function, name, "a torch.Tensor", f"{type(value).__name__} {describe(value)}", fix, error=TypeError)
    if not torch.compiler.is_compiling() and value.device.type == "cpu":
        process(function)
    if shape is not None and not _fits(value, shape):
        fail(function, name, _expected(shape, dtypes), value, fix)
    if dtypes is not None and value.dtype not in dtypes:
        fail(function, name, _expected(shape or tuple(value.shape), dtypes), value, fix, error=TypeError)
    if device is not None and value.device != device:
        here = " on cpu" if value.device.type == "cpu" else ""  # which describe leaves out
        fail(function, name, f"on {device}", f"{describe(value)}{here}", "move it with .to(device)")
    return value


def not_a_result(function: str, name: str, value: Any) -> None:
    """Refuse a whole named result where one of its tensors belongs, and say which."""
    fields = getattr(type(value), "_fields", ())
    if fields and isinstance(value, tuple):
        wanted = next((field for field in fields if name.endswith(field)), fields[0])
        fail(function, name, f"one tensor of a {type(value).__name__}", "all of it", f"pass its .{wanted}", error=TypeError)


def one_number_a_token(function: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse logits where log-probs belong: the tokens' shape (`shape`) and one dimension more."""
    logits_like = isinstance(value, Tensor) and name.endswith("log_probs") and value.dim() == len(shape) + 1
    if logits_like and tuple(value.shape[:-1]) == tuple(shape):
        got = f"{describe(value)}, which has the shape of logits over {value.shape[-1]} entries"
        fix = "pass logprob.token_log_probs(logits, token_ids).log_probs"
        fail(function, name, f"{tuple(shape)} float, one number a token", got, fix)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic on values of `dtype`: fp64 stays, everything else computes in fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def mask(
    function: str, value: Any, shape: tuple[int, ...] | None = None, device: torch.device | None = None, *, name: str = "mask"
) -> Tensor:
    """Check a mask: bool, the exact shape if one is given. A float mask is refused, because weights are something else."""
    shape = tuple(value.shape) if shape is None and isinstance(value, Tensor) else shape
    if isinstance(value, Tensor) and value.dtype != torch.bool:
        if name == "mask":
            meaning = " (True = this token is trained)"
            fix = 'use mask.bool(); soft weights belong in extras={"weights": ...} with objective weighting=TokenWeights()'
        else:
            meaning, fix = "", f"use {name}.bool(), or say what counts as True"
        fail(function, name, f"{shape} bool{meaning}", value, fix, error=TypeError)
    fix = "build it from the tokens that are trained, one bool a token" if name == "mask" else "pass one bool a row"
    return tensor(function, name, value, shape=shape, device=device, fix=fix)


def real(value: Any) -> float | None:
    """The real number that `value` is, as a float (ints, NumPy scalars, fractions); None for booleans, texts, NaN, tensors and the rest."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or isinstance(value, numbers.Real)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an int beyond float64
        return None
    return found if found == found else None


def whole(value: Any) -> int | None:
    """The integer that `value` is (NumPy's included), as an int; None for booleans, floats, texts, tensors and the rest."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(function: str, name: str, value: Any, *, above: float | None = None, at_least: float | None = None, fix: str) -> float:
    """Check a finite real number (Python's or NumPy's) with a lower bound, and return it as a float."""
    bound = (
        f"a finite number > {above}"
        if above is not None
        else f"a finite number >= {at_least}"
        if at_least is not None
        else "a finite number"
    )
    found = real(value)
    if found is None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)  # NaN, or an int beyond float64
        fail(function, name, bound, value, fix, error=ValueError if is_number else TypeError)
    if not (float("-inf") < found < float("inf")) or (above is not None and found <= above) or (at_least is not None and found < at_least):
        fail(function, name, bound, value, fix)
    return found


def one_number(function: str, name: str, value: Tensor, *, fix: str) -> Tensor:
    """Check a 0-dim tensor of a real number."""
    tensor(function, name, value, shape=(), fix=fix)
    if value.dtype == torch.bool or value.is_complex():
        fail(function, name, "a 0-dim tensor of a real number", value, fix, error=TypeError)
    return value


def integer(function: str, name: str, value: Any, *, at_least: int, fix: str) -> int:
    """Check an integer (Python's or NumPy's) with a lower bound, and return it as an int."""
    found = whole(value)
    if found is None or found < at_least:
        fail(function, name, f"an integer >= {at_least}", value, fix, error=TypeError if found is None else ValueError)
    return found


def switch(function: str, name: str, value: Any) -> bool:
    """Check a switch: Python's or NumPy's True or False. Anything else has a truth too, and "false" has the wrong one."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ not in ("bool_", "bool"):  # NumPy's has another name in either of its versions
        fail(function, name, "True or False", value, 'pass a bool; a text such as "false" would count as true', error=TypeError)
    return bool(value)


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.dim() == len(shape) and all(want is None or want == got for want, got in zip(shape, value.shape))


def _expected(shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...] | None) -> str:
    text = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
    if dtypes:
        text += " " + " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return text
