"""What every launcher asks of its tensors. Metadata only: nothing here waits for a device."""

import contextlib
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(function: str, argument: str, expected: str, got: object, fix: str) -> NoReturn:
    """Raise the one message form: function, argument, expected, got, and the fix."""
    if isinstance(got, Tensor):
        got = f"{tuple(got.shape)} {str(got.dtype).removeprefix('torch.')} on {got.device}"
    raise ValueError(f"{function}: {argument} must be {expected}, got {got}; {fix}")


def matrix(function: str, name: str, value: Tensor) -> Tensor:
    """A floating (n, V) matrix, V >= 1, whose rows are contiguous; the row stride is free."""
    if value.dim() != 2 or value.dtype not in FLOATS or value.shape[1] == 0:
        fail(function, name, "an (n, V) float32, bfloat16, float16 or float64 tensor with V >= 1", value, "flatten the leading dimensions")
    if value.stride(1) != 1 and value.shape[1] > 1:
        fail(function, name, "contiguous along the vocabulary", f"strides {value.stride()}", "call .contiguous()")
    return value


def accumulator(logits: Tensor) -> torch.dtype:
    """The dtype of row arithmetic and of per-row results: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def vector(function: str, name: str, value: Tensor, rows: int, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A per-row (rows,) tensor on `device`, contiguous and in `dtype` (None: in its own), copied only where it is not so already."""
    if value.shape != (rows,):
        fail(function, name, f"({rows},), one value a row", value, "pass one value for each row")
    if value.device != device:
        fail(function, name, f"on {device}", value, "move it with .to(device)")
    return value.to(dtype or value.dtype).contiguous()


def overlap(a: Tensor, b: Tensor) -> bool:
    """True if the two matrices lie across one stretch of memory (they may then share bytes; matrices side by side count too)."""
    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    starts = [t.data_ptr() for t in (a, b)]
    ends = [t.data_ptr() + t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) for t in (a, b)]
    return max(starts) < min(ends)


def same_elements(a: Tensor, b: Tensor) -> bool:
    """True if element (i, j) of both is the same memory."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def on_device(tensor: Tensor):
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()
