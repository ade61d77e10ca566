"""Passes of a head over rows: chunk sizes, one chunk forward, one chunk backward, and the recomputing backward.

Peak memory of a pass beside its results: `chunk_rows` rows x (V x 4 bytes of logits + V x 2 of low-precision dlogits
on a GPU + H x 8 of gathered rows), plus one upcast slab of 8192 x H x 4 bytes for low-precision weights on a CPU.
The torch rows add a few blocks of 2^18 numbers; the C++ and Triton rows add nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..checks import compute_dtype
from ..head import ReadyHead
from .gemm import SLAB_COLUMNS, add_d_weight, d_hidden_of, head_logits, logits_buffer
from .rows import rows_for
from .shards import WHOLE, Shards

MINIMUM_ROWS = 16
INVARIANT_ROWS = 256  # enough that a GEMM is efficient, and few enough that padding a short batch is cheap


class HeadTensors(NamedTuple):
    """A head as the passes see it; temperature and scales are in the per-row `scale`."""

    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    tanh_in: float  # logit_scale / softcap, 0.0 without softcap
    fixed_rows: int = 0  # the rows of every GEMM, zero-padded, so that a row's results do not depend on the others; 0: as there are
    shards: Shards = WHOLE  # which columns of a vocabulary-parallel head these are

    def columns(self, piece: slice) -> "HeadTensors":
        return self._replace(weight=self.weight[piece], bias=None if self.bias is None else self.bias[piece])


class ScoredRows(NamedTuple):
    """Rows of hidden states with what was found of them; all (m, ...)."""

    hidden: Tensor  # (m, H)
    token_ids: Tensor  # (m,)
    scale: Tensor  # (m,)
    lse: Tensor  # (m, 2): the maximum, and the log of the sum above it
    entropy: Tensor  # (m,)
    d_log_probs: Tensor  # (m,)
    d_entropy: Tensor  # (m,)


def head_tensors(ready: ReadyHead) -> HeadTensors:
    """A checked head as the passes see it."""
    return HeadTensors(ready.weight, ready.bias, ready.tanh_in, shards=Shards(ready.group_name, list(ready.columns)))


def held_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a gradient waits for the upstream scalar (a loss scale, say): fp16's in fp32, whose range the others have."""
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def default_budget(weight: Tensor) -> int:
    """Bytes for a chunk: 256 MiB on a CPU; on a GPU 1 GiB or what 4096 rows need, if that is more."""
    if weight.device.type == "cpu":
        return 256 << 20
    return max(1 << 30, 4096 * _bytes_per_row(weight))


def budget_of(function: str, chunk_bytes: int | None, weight: Tensor) -> int:
    """The bytes for a chunk that a caller asked for, or the default; `chunk_rows` refuses too few."""
    if chunk_bytes is None:
        return default_budget(weight)
    if type(chunk_bytes) is int:
        return chunk_bytes
    return checks.integer(function, "chunk_bytes", chunk_bytes, at_least=1, fix="pass bytes as an int, int(1e9), or None for the default")


def chunk_rows(function: str, head: HeadTensors, budget: int, copies: int = 1) -> int:
    """How many rows a chunk may have within `budget` bytes, if each needs its memory `copies` times; raises if not even a tile fits."""
    fixed = SLAB_COLUMNS * head.weight.shape[1] * 4 if _upcasts(head.weight) else 0
    per_row = copies * _bytes_per_row(head.weight, head.shards.largest)
    rows = (budget - fixed) // per_row
    if rows < MINIMUM_ROWS:
        checks.fail(
            function,
            "chunk_bytes",
            f"at least {fixed + MINIMUM_ROWS * per_row} bytes for {MINIMUM_ROWS} rows of this head",
            budget,
            "raise it, or leave it None for the default",
        )
    return rows


def chunks_of(function: str, head: HeadTensors, budget: int, invariant: bool) -> tuple[HeadTensors, int]:
    """(head, most rows of a chunk). With `invariant` the head is set to fixed rows, and a chunk may hold padded copies."""
    if not invariant:
        return head, chunk_rows(function, head, budget)
    most = min(INVARIANT_ROWS, chunk_rows(function, head, budget, copies=2))
    return head._replace(fixed_rows=most), most


def split(start: int, stop: int, most: int) -> list[tuple[int, int]]:
    """[start, stop) in pieces of nearly equal size, none above `most`."""
    pieces = max(1, -(-(stop - start) // most))
    size = -(-(stop - start) // pieces)
    return [(at, min(at + size, stop)) for at in range(start, stop, size)] if stop > start else []


def score(
    hidden: Tensor, token_ids: Tensor, scale: Tensor, head: HeadTensors, buffer: Tensor | None, *, squares: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(logits (m, V), log_probs (m,), lse (m, 2), entropy (m,), squared (m,)) of one chunk; the logits live in `buffer` until the next.

    Without `squares`, which no loss reads, `squared` means nothing.
    """
    rows = rows_for(hidden.device)  # before the product, which would hang where this raises
    logits = head_logits(hidden, head.weight, head.bias, buffer, head.fixed_rows)
    squares = squares or bool(head.shards.group_name)  # what ranks exchange is of one shape
    found = rows.rows_forward(logits, token_ids, scale, head.tanh_in, squares=squares)
    return logits, *head.shards.together(token_ids, found)


def d_logits_of(
    logits: Tensor, rows: ScoredRows, tanh_in: float, operand: torch.dtype, source_rows: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Turn a chunk of logits into dlogits as GEMM operands; (dlogits, factor still to be applied or None).

    In place on a CPU. fp16 has no range for coefficients of 1 / (tokens in the batch), so there dlogits are formed
    at unit scale and a power of two is left to be applied in fp32; bf16 and fp32 share one range and need none.
    """
    c, e, factor = rows.d_log_probs, rows.d_entropy, None
    m = c.shape[0]
    if operand == logits.dtype or logits.device.type == "cpu":
        out = logits[:m]
    else:
        out = logits.new_empty((m, logits.shape[1]), dtype=operand)
        if operand == torch.float16:
            largest = torch.maximum(c.abs().amax(), e.abs().amax())
            factor = torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), 1.0)
            c, e = c / factor, e / factor
    source = logits if source_rows is not None else logits[:m]  # without source_rows the rows stand in order: a prefix
    rows_for(logits.device).rows_backward(source, rows.token_ids, rows.scale, tanh_in, rows.lse, rows.entropy, c, e, out, source_rows)
    return out, factor


class Gradients:
    """Gradients of a head as they grow over chunks, in the compute dtype; None where not wanted, or where nothing was added yet."""

    def __init__(self, need: list[bool]) -> None:
        self.need_d_hidden, self.need_d_weight, self.need_d_bias = need
        self.d_weight: Tensor | None = None  # (V, H)
        self.d_bias: Tensor | None = None  # (V,)

    def form(self, logits: Tensor, rows: ScoredRows, head: HeadTensors, source_rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A chunk's dlogits and factor, as of `d_logits_of`. The caller lets go of the logits before they are added."""
        return d_logits_of(logits, rows, head.tanh_in, _operand(head.weight), source_rows)

    def add_chunk(self, d_logits: Tensor, factor: Tensor | None, hidden: Tensor, head: HeadTensors) -> Tensor | None:
        """Add a chunk that was formed; its d_hidden (m, H) is returned."""
        if self.need_d_weight:
            self.d_weight = add_d_weight(self.d_weight, d_logits, hidden, factor)
        if self.need_d_bias:
            d_bias = _scaled(d_logits.sum(0, dtype=compute_dtype(head.weight.dtype)), factor)
            self.d_bias = d_bias if self.d_bias is None else self.d_bias.add_(d_bias)
        return _scaled(d_hidden_of(d_logits, head.weight, head.fixed_rows), factor) if self.need_d_hidden else None


def recompute_backward(
    rows: ScoredRows, head: HeadTensors, budget: int, need: list[bool], *, d_weight: Tensor | None, d_bias: Tensor | None
) -> Tensor | None:
    """Gradients for any coefficients by recomputing the logits, vocabulary outermost.

    Each slab of d_weight is summed in the compute dtype and rounded once into `d_weight` (added to what is there);
    d_hidden (m, H) is summed over slabs in the compute dtype and returned so.
    """
    m, vocabulary = rows.hidden.shape[0], head.weight.shape[0]
    dtype = compute_dtype(head.weight.dtype)
    d_hidden = rows.hidden.new_zeros(rows.hidden.shape, dtype=dtype) if need[0] else None
    width, height = _slab_shape(head.weight, budget // 2 if head.fixed_rows else budget)
    if head.fixed_rows:
        height = min(height, head.fixed_rows)
        head = head._replace(fixed_rows=height)
    buffer = logits_buffer(max(min(m, height), head.fixed_rows), head.weight[:width])
    for left, right in split(0, vocabulary, width):
        piece, slab = head.columns(slice(left, right)), Gradients(need)
        for top, bottom in split(0, m, height):
            block = ScoredRows(*(tensor[top:bottom] for tensor in rows))
            block = block._replace(token_ids=block.token_ids - left)
            logits = head_logits(block.hidden, piece.weight, piece.bias, buffer, piece.fixed_rows)
            d_logits, factor = slab.form(logits, block, piece)
            del logits
            part = slab.add_chunk(d_logits, factor, block.hidden, piece)
            if part is not None:
                d_hidden[top:bottom] += part
        if slab.d_weight is not None:
            d_weight[left:right] += slab.d_weight.to(d_weight.dtype)
        if slab.d_bias is not None:
            d_bias[left:right] += slab.d_bias.to(d_bias.dtype)
    return d_hidden


def _slab_shape(weight: Tensor, budget: int) -> tuple[int, int]:
    """(columns, rows) of a slab: half of the budget for what grows with the columns (d_weight), half for logits and d_hidden of a block."""
    vocabulary, hidden = weight.shape
    dtype, operand = compute_dtype(weight.dtype), _operand(weight)
    per_column = hidden * dtype.itemsize * (2 if _upcasts(weight) else 1)
    width = max(MINIMUM_ROWS, min(vocabulary, budget // 2 // per_column))
    per_entry = dtype.itemsize + (0 if operand == dtype else operand.itemsize)
    return width, max(MINIMUM_ROWS, budget // 2 // (width * per_entry + hidden * (dtype.itemsize + weight.dtype.itemsize)))


def _operand(weight: Tensor) -> torch.dtype:
    """The dtype of dlogits as a GEMM operand: what the weight has, but nothing low on a CPU."""
    return compute_dtype(weight.dtype) if weight.device.type == "cpu" else weight.dtype


def _scaled(value: Tensor, factor: Tensor | None) -> Tensor:
    return value if factor is None else value * factor


def _upcasts(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)


def _bytes_per_row(weight: Tensor, columns: int = 0) -> int:
    vocabulary, hidden = max(columns, weight.shape[0]), weight.shape[1]
    compute = compute_dtype(weight.dtype).itemsize
    d_logits = weight.dtype.itemsize if weight.device.type != "cpu" and weight.dtype.itemsize < compute else 0
    return vocabulary * (compute + d_logits) + hidden * (compute + weight.dtype.itemsize)
