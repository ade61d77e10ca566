"""The three GEMMs of a head, each with a result in the compute dtype (fp32, or fp64 for fp64).

Low-precision operands: on a GPU the GEMM itself accumulates and returns fp32 (`out_dtype`); on a CPU no such GEMM
exists, so the weight is upcast slab by slab and fp32 GEMMs run. fp32 operands follow the user's TF32 setting.
"""

import contextlib
import functools

import torch
from torch import Tensor

from ..checks import compute_dtype

SLAB_COLUMNS = 8192  # vocabulary columns that are upcast at a time on a CPU


def logits_buffer(rows: int, weight: Tensor) -> Tensor | None:
    """(rows, V) memory that a call's chunks share on a CPU, where fresh memory costs page faults; None on a GPU, which keeps it."""
    return weight.new_empty((rows, weight.shape[0]), dtype=compute_dtype(weight.dtype)) if weight.device.type == "cpu" else None


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor | None = None, fixed_rows: int = 0) -> Tensor:
    """(n, V) compute dtype: hidden (n, H) @ weight (V, H).T + bias (V,), in the first rows of `buffer` if there is one.

    `fixed_rows` > 0: the product runs over that many rows, zeros below, so that a row's result does not depend on n.
    """
    if fixed_rows:
        return head_logits(padded(hidden, fixed_rows), weight, bias, buffer)[: hidden.shape[0]]
    dtype = compute_dtype(weight.dtype)
    if weight.device.type != "cpu":
        logits = torch.mm(hidden, weight.t()) if weight.dtype == dtype else _low_precision_mm(hidden, weight.t())
        return logits if bias is None else logits.add_(bias)
    shape = hidden.shape[0], weight.shape[0]
    logits = hidden.new_empty(shape, dtype=dtype) if buffer is None else buffer[: shape[0], : shape[1]]
    if weight.dtype == dtype:
        return torch.mm(hidden, weight.t(), out=logits) if bias is None else torch.addmm(bias, hidden, weight.t(), out=logits)
    hidden = hidden.to(dtype)
    for columns in slabs(weight.shape[0]):
        torch.mm(hidden, weight[columns].to(dtype).t(), out=logits[:, columns])
    return logits if bias is None else logits.add_(bias)


def d_hidden_of(d_logits: Tensor, weight: Tensor, fixed_rows: int = 0) -> Tensor:
    """(n, H) compute dtype: d_logits (n, V) @ weight (V, H); `fixed_rows` as in `head_logits`."""
    if fixed_rows:
        return d_hidden_of(padded(d_logits, fixed_rows), weight)[: d_logits.shape[0]]
    dtype = compute_dtype(weight.dtype)
    if d_logits.dtype == weight.dtype == dtype:
        return torch.mm(d_logits, weight)
    if weight.device.type != "cpu":
        return _low_precision_mm(d_logits, weight)
    total = weight.new_zeros((d_logits.shape[0], weight.shape[1]), dtype=dtype)
    for columns in slabs(weight.shape[0]):
        total.addmm_(d_logits[:, columns].to(dtype), weight[columns].to(dtype))
    return total


def add_d_weight(total: Tensor | None, d_logits: Tensor, hidden: Tensor, factor: Tensor | None) -> Tensor:
    """(V, H) compute dtype: total + factor * d_logits (n, V).T @ hidden (n, H), in place; total None counts 0 and is never filled."""
    dtype = compute_dtype(hidden.dtype)
    if hidden.device.type == "cpu" or d_logits.dtype == dtype:
        d_logits, hidden = d_logits.to(dtype), hidden.to(dtype)
        if total is not None and factor is None:
            return total.addmm_(d_logits.t(), hidden)
        product = torch.mm(d_logits.t(), hidden)
    else:
        product = _low_precision_mm(d_logits.t(), hidden)
    product = product if factor is None else product.mul_(factor)
    return product if total is None else total.add_(product)


def padded(matrix: Tensor, rows: int) -> Tensor:
    """`matrix` with zero rows below, contiguous and in memory as aligned as a new tensor: a library may choose its kernel by that."""
    if matrix.shape[0] == rows and matrix.is_contiguous() and matrix.data_ptr() % 64 == 0:
        return matrix
    return torch.cat([matrix, matrix.new_zeros((rows - matrix.shape[0], matrix.shape[1]))])


def slabs(columns: int) -> list[slice]:
    """The vocabulary in pieces of SLAB_COLUMNS."""
    return [slice(start, min(start + SLAB_COLUMNS, columns)) for start in range(0, columns, SLAB_COLUMNS)]


def _low_precision_mm(a: Tensor, b: Tensor) -> Tensor:
    if _has_out_dtype(a.device, a.dtype):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # slower, never less exact


@functools.cache
def _has_out_dtype(device: torch.device, dtype: torch.dtype) -> bool:
    """True if `device` multiplies matrices of `dtype` into an fp32 result; asked once for each, since a GPU may know fp16 and not bf16.

    The question goes to a stream of its own, or a graph that is being captured would take it in.
    """
    aside = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with aside:
            probe = torch.ones(16, 16, dtype=dtype, device=device)
            return torch.mm(probe, probe, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False
