"""Row kernels in plain torch: for any device, and for machines without a compiler.

The signature is that of the C++ and Triton rows. Works through blocks of rows, so that temporaries stay small.
"""

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 18


def rows_forward(
    logits: Tensor,  # (n, V) any float, rows may be strided
    token_ids: Tensor,  # (n,) int64
    scale: Tensor,  # (n,) compute dtype
    tanh_in: float,
    *,
    squares: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(log_probs (n,), lse (n, 2), entropy (n,), squared (n,) or None) of softmax p over z = scale * x or scale * tanh(tanh_in * x).

    The log-sum-exp is two numbers, the maximum and the log of the sum above it: their sum would lose digits where it is large.
    `squared` is the sum of p^2, None without `squares`.
    """
    n, vocabulary = logits.shape
    log_probs, lse, entropy = scale.new_empty(n), scale.new_empty((n, 2)), scale.new_empty(n)
    squared = scale.new_empty(n) if squares else None
    for rows in _blocks(n, vocabulary):
        z = _transform(logits[rows], scale[rows], tanh_in)
        largest = z.amax(1, keepdim=True)
        z -= largest  # before the log of the sum: a common offset costs no digits
        exponentials = z.exp()
        total = exponentials.sum(1)
        log_total = total.log()
        z.masked_fill_(exponentials == 0, 0)  # 0 * -inf is 0 here
        entropy[rows] = log_total - (exponentials * z).sum(1) / total
        if squared is not None:
            squared[rows] = exponentials.square_().sum(1) / total.square()
        lse[rows] = torch.cat([largest, log_total.unsqueeze(1)], 1)
        inside = (token_ids[rows] >= 0) & (token_ids[rows] < vocabulary)
        target = logits[rows].gather(1, token_ids[rows].clamp(0, vocabulary - 1).unsqueeze(1))
        z_target = _transform(target, scale[rows], tanh_in) - largest
        log_probs[rows] = torch.where(inside, z_target.squeeze(1) - log_total, torch.nan)
    return log_probs, lse, entropy, squared


def rows_backward(
    logits: Tensor,  # (n, V)
    token_ids: Tensor,  # (m,) int64; outside [0, V): no target among these columns
    scale: Tensor,  # (m,)
    tanh_in: float,
    lse: Tensor,  # (m, 2)
    entropy: Tensor,  # (m,)
    d_log_probs: Tensor,  # (m,)
    d_entropy: Tensor,  # (m,)
    out: Tensor,  # (m, V), may be the memory of logits
    source_rows: Tensor | None = None,  # (m,) int64, increasing, source_rows[i] >= i
) -> None:
    """Write into `out` the gradient with respect to the raw logits of the rows named."""
    m, vocabulary = out.shape
    for rows in _blocks(m, vocabulary):
        x = logits[rows] if source_rows is None else logits.index_select(0, source_rows[rows])
        inner = torch.tanh(x.to(scale.dtype) * tanh_in) if tanh_in else x.to(scale.dtype)
        log_p = (scale[rows].unsqueeze(1) * inner - lse[rows, :1]) - lse[rows, 1:]
        p = log_p.exp()
        c, e = d_log_probs[rows].unsqueeze(1), d_entropy[rows].unsqueeze(1)
        spread = torch.where(p == 0, 0, log_p + entropy[rows].unsqueeze(1))
        dz = -p * (c + e * spread)
        inside = (token_ids[rows] >= 0) & (token_ids[rows] < vocabulary)
        at = token_ids[rows].clamp(0, vocabulary - 1).unsqueeze(1)
        # 1 - p by expm1 of the log-prob: 1 - p itself has no digits left where p is near 1.
        target = -c * torch.expm1(log_p.gather(1, at)) - e * p.gather(1, at) * spread.gather(1, at)
        dz.scatter_(1, at, torch.where(inside.unsqueeze(1), target, dz.gather(1, at)))
        dz *= scale[rows].unsqueeze(1)
        if tanh_in:
            dz *= tanh_in * (1 - inner.square())
        dz.masked_fill_((c == 0) & (e == 0), 0)
        out[rows] = dz.to(out.dtype)


def _transform(x: Tensor, scale: Tensor, tanh_in: float) -> Tensor:
    x = x.to(scale.dtype)
    return scale.unsqueeze(1) * (torch.tanh(x * tanh_in) if tanh_in else x)


def _blocks(n: int, vocabulary: int) -> list[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(vocabulary, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
