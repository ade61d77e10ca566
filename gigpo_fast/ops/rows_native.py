"""Row kernels in C++ for CPU tensors, vectorised, on torch's own threads: loads the library on first use.

A result depends on its row alone, never on the number of threads or on the other rows.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend, checks, native_memory
from ..once import once

_CPU = torch.device("cpu")


def rows_forward(
    logits: Tensor,  # (n, V) float32, bfloat16, float16 or float64, stride(1) == 1, rows may be strided
    token_ids: Tensor,  # (n,) int64; outside [0, V): log-prob NaN
    scale: Tensor,  # (n,) float32, float64 for float64 logits: logit_scale, softcap and temperature in one factor
    tanh_in: float,  # 1 / softcap, or 0.0 for none
    *,
    squares: bool = True,  # False: None in the place of `squared`
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(log_probs (n,), lse (n, 2), entropy (n,), squared (n,)) of softmax over the transformed logits z, in the dtype of `scale`, in nats.

        z = scale[:, None] * (torch.tanh(tanh_in * logits) if tanh_in else logits)
        log_p = torch.log_softmax(z, 1)
        log_p.gather(1, token_ids[:, None])[:, 0], (z.amax(1), log(sum(exp(z - max)))), -(log_p.exp() * log_p).nan_to_num(0).sum(1),
        log_p.exp().square().sum(1)

    Logits of -inf have probability 0; a row of only -inf, a NaN or (without softcap) a +inf in a row give NaN. Arithmetic is float32
    (float64 for float64), sums are carried in float64 between blocks of 2048 columns. Raises ValueError or TypeError for a wrong shape,
    dtype or device.
    """
    name = "rows_forward"
    n = _matrix(name, "logits", logits).shape[0]
    compute = checks.compute_dtype(logits.dtype)
    ids = _per_row(name, "token_ids", token_ids, n, torch.int64)
    *found, squared = native_memory.call(name, _ops().rows_forward, logits, ids, _per_row(name, "scale", scale, n, compute), float(tanh_in))
    return *found, squared if squares else None


def rows_backward(
    logits: Tensor,  # (n, V) as in rows_forward
    token_ids: Tensor,  # (m,) int64; outside [0, V): no target among these columns
    scale: Tensor,  # (m,) as in rows_forward, like every per-row argument here in the order of the rows of `out`
    tanh_in: float,
    lse: Tensor,  # (m, 2) from rows_forward: the maximum, and the log of the sum above it
    entropy: Tensor,  # (m,) from rows_forward; not read where d_entropy is 0
    d_log_probs: Tensor,  # (m,) dL/dlog_prob
    d_entropy: Tensor,  # (m,) dL/dentropy
    out: Tensor,  # (m, V) float32, bfloat16, float16 or float64, stride(1) == 1; may be the memory of `logits`
    source_rows: Tensor | None = None,  # (m,) int64, strictly increasing rows of logits, source_rows[i] >= i; None: m == n
) -> None:
    """Write into row i of `out` the gradient with respect to the raw logits of row source_rows[i] (or i).

        log_p = (z - lse[:, :1]) - lse[:, 1:]
        dz = c[:, None] * (one_hot(token_ids) - log_p.exp()) - e[:, None] * log_p.exp() * (log_p + entropy[:, None])
        out = dz * scale[:, None] * (tanh_in * (1 - tanh(tanh_in * logits) ** 2) if tanh_in else 1)

    The target entry uses -c expm1(log_p). Rows with c = e = 0 give exact zeros whatever their logits hold. In place is legal, also while
    rows are compacted: row i is written only after the rows up to i have been read. Other overlaps of `out` and `logits` raise
    RuntimeError.
    """
    name = "rows_backward"
    n, vocabulary = _matrix(name, "logits", logits).shape
    m = _matrix(name, "out", out).shape[0]
    expected = (n if source_rows is None else m, vocabulary)
    if tuple(out.shape) != expected:
        checks.fail(name, "out", f"{expected}, a row for each row of logits or of source_rows", out, "allocate it with that shape")
    compute = checks.compute_dtype(logits.dtype)
    per_row = {"scale": scale, "entropy": entropy, "d_log_probs": d_log_probs, "d_entropy": d_entropy}
    scale, *rest = (_per_row(name, argument, value, m, compute) for argument, value in per_row.items())
    lse = checks.tensor(name, "lse", lse, shape=(m, 2), dtypes=(compute,), device=_CPU, fix="pass what rows_forward returned").contiguous()
    ids = _per_row(name, "token_ids", token_ids, m, torch.int64)
    source = None if source_rows is None else _per_row(name, "source_rows", source_rows, m, torch.int64)
    native_memory.call(name, _ops().rows_backward, logits, ids, scale, float(tanh_in), lse, *rest, source, out)


def _matrix(function: str, name: str, value: Tensor) -> Tensor:
    fix = "pass 2-d CPU logits with the vocabulary last"
    checks.tensor(function, name, value, shape=(None, None), dtypes=checks.FLOATS, device=_CPU, fix=fix)
    if value.shape[1] == 0:
        checks.fail(function, name, "(rows, V) with V >= 1", value, fix)
    if value.shape[1] > 1 and value.stride(1) != 1:
        checks.fail(function, name, "of stride 1 along the vocabulary", value.stride(), "call .contiguous()")
    return value


def _per_row(function: str, name: str, value: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    fix = "pass one value for each row" if name != "scale" else "pass one value for each row, float64 only with float64 logits"
    return checks.tensor(function, name, value, shape=(rows,), dtypes=(dtype,), device=_CPU, fix=fix).contiguous()


@once
def _ops() -> Any:
    reason = backend.why_not_native(_CPU)
    if reason is not None:
        raise RuntimeError(f"rows_native: {reason}")

    @torch.library.register_fake("gigpo_fast_C::rows_forward")
    def _(logits, token_ids, scale, tanh_in, isa=-1):
        n = logits.shape[0]
        return scale.new_empty(n), scale.new_empty((n, 2)), scale.new_empty(n), scale.new_empty(n)

    @torch.library.register_fake("gigpo_fast_C::rows_backward")
    def _(logits, token_ids, scale, tanh_in, lse, entropy, d_log_probs, d_entropy, source_rows, out, isa=-1):
        return None

    return torch.ops.gigpo_fast_C
