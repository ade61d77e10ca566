"""Gradient of a row's log-probability and entropy with respect to its raw logits, in one read and one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .arguments import accumulator, fail, matrix, on_device, overlap, same_elements, vector
from .common import expm1, tanh_and_slope, transform


@triton.jit
def rows_backward_kernel(
    logits, token_ids, scale, lse, entropy, d_log_probs, d_entropy, out, source_rows, V, stride, out_stride,
    TANH_IN: tl.constexpr, HAS_SOURCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(source_rows + row) if HAS_SOURCE else row
    logits_row, out_row = logits + source * stride, out + row * out_stride
    token, factor = tl.load(token_ids + row), tl.load(scale + row)
    dtype: tl.constexpr = factor.dtype
    peak, log_total, H = tl.load(lse + 2 * row), tl.load(lse + 2 * row + 1), tl.load(entropy + row)
    c, e = tl.load(d_log_probs + row), tl.load(d_entropy + row)
    readable = tl.where((c != 0.0) | (e != 0.0), V, 0)  # a row without gradient is not read; NaN counts as a gradient

    known = (token >= 0) & (token < V)
    target = tl.where(known, token, 0)
    # c (1 - p) at the target loses all its digits as p nears 1; -c expm1(log p) keeps them.
    pull = -c * expm1(transform(tl.load(logits_row + target).to(dtype), factor, TANH_IN) - peak - log_total)
    target_column = tl.where(known, token, -1).to(tl.int32)
    tl.debug_barrier()  # `out` may be `logits`: every thread has the target logit before any thread writes

    columns = tl.arange(0, BLOCK)
    for start in range(0, V, BLOCK):
        column = start + columns
        inside = column < readable
        x = tl.load(logits_row + column, mask=inside, other=0.0).to(dtype)
        d = transform(x, factor, TANH_IN) - peak - log_total  # the maximum first: nearly exact where p is not small
        p = tl.exp(d)
        spread = tl.where(p == 0.0, 0.0, p * (d + H))
        dx = (tl.where(column == target_column, pull, -c * p) - e * spread) * factor
        if TANH_IN != 0.0:
            _, slope = tanh_and_slope(x * TANH_IN)
            dx *= TANH_IN * slope
        tl.store(out_row + column, tl.where(inside, dx, 0.0).to(out.dtype.element_ty), mask=column < V)


def rows_backward(
    logits: Tensor,  # (n, V) float, rows contiguous, any row stride
    token_ids: Tensor,  # (m,) int64; outside [0, V): this row has no target here
    scale: Tensor,  # (m,) float32 (float64 for float64 logits)
    tanh_in: float,
    lse: Tensor,  # (m, 2) float32, from rows_forward: the maximum, and the log of the sum above it
    entropy: Tensor,  # (m,) float32, from rows_forward
    d_log_probs: Tensor,  # (m,) float32, dL/dlog_prob
    d_entropy: Tensor,  # (m,) float32, dL/dentropy
    out: Tensor,  # (m, V) any float dtype, rows contiguous; may be `logits` itself where source_rows is None
    source_rows: Tensor | None = None,  # (m,) int64, the row of `logits` behind each row of `out`; None: the same
    *,
    config: configs.Config | None = None,
) -> None:
    """Write dL/dlogits to `out`.

        log_p = z - lse[:, :1] - lse[:, 1:]                                   # z as in rows_forward
        dz = d_log_probs * (one_hot - log_p.exp()) - d_entropy * log_p.exp() * (log_p + entropy)
        out = dz * scale                                                      # tanh_in == 0
        out = dz * scale * tanh_in * (1 - tanh(tanh_in * logits) ** 2)        # otherwise

    Rows whose two gradients are 0 give exact zeros and are not read. `out` in any other overlap with `logits` than being `logits` raises:
    programs run in no order, so one could write what another has yet to read.
    """
    name = "rows_backward"
    rows, V = matrix(name, "logits", logits).shape
    m = matrix(name, "out", out).shape[0]
    if out.shape[1] != V or out.device != logits.device or (source_rows is None and m != rows):
        fail(name, "out", f"({'m' if source_rows is not None else rows}, {V}) on {logits.device}", out, "give it the shape of the gradient")
    if overlap(logits, out) and (source_rows is not None or not same_elements(logits, out)):
        fail(name, "out", "logits itself without source_rows, or memory of its own", "an overlapping tensor", "write to a new tensor")
    dtype, device = accumulator(logits), logits.device
    token_ids = vector(name, "token_ids", token_ids, m, device, torch.int64)
    if lse.shape != (m, 2) or lse.device != device:
        fail(name, "lse", f"({m}, 2) on {device}", lse, "pass what rows_forward returned")
    lse = lse.to(dtype).contiguous()
    given = {"scale": scale, "entropy": entropy, "d_log_probs": d_log_probs, "d_entropy": d_entropy}
    scale, entropy, d_log_probs, d_entropy = (vector(name, key, value, m, device, dtype) for key, value in given.items())
    if source_rows is not None:
        source_rows = vector(name, "source_rows", source_rows, m, device, torch.int64)
    if m:
        config = config or configs.choose(name, logits)
        with on_device(logits):
            rows_backward_kernel[(m,)](
                logits, token_ids, scale, lse, entropy, d_log_probs, d_entropy, out, source_rows, V, logits.stride(0), out.stride(0),
                TANH_IN=float(tanh_in), HAS_SOURCE=source_rows is not None, BLOCK=configs.tile(config, logits)["BLOCK"],
                **config.options(),
            )  # fmt: skip
