"""Log-prob of one token, log-sum-exp, entropy and, if wanted, sum of squared probabilities of every row, in one read of the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .arguments import accumulator, matrix, on_device, vector
from .common import row_log_prob


@triton.jit
def rows_forward_kernel(
    logits, token_ids, scale, log_probs, lse, entropy, squared, V, stride,
    TANH_IN: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ids + row)
    log_prob, peak, log_total, row_entropy, row_squared = row_log_prob(
        logits + row * stride, token, V, tl.load(scale + row), TANH_IN, BLOCK, LANES, WIDTH
    )
    tl.store(log_probs + row, log_prob)
    tl.store(lse + 2 * row, peak)
    tl.store(lse + 2 * row + 1, log_total)
    tl.store(entropy + row, row_entropy)
    if SQUARES:  # what is not stored is not computed
        tl.store(squared + row, row_squared)


def rows_forward(
    logits: Tensor,  # (n, V) float, rows contiguous, any row stride
    token_ids: Tensor,  # (n,) int64, the token of each row; outside [0, V): NaN log-prob
    scale: Tensor,  # (n,) float32 (float64 for float64 logits)
    tanh_in: float,
    *,
    squares: bool = True,
    config: configs.Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(log_probs (n,), lse (n, 2), entropy (n,), squared (n,) or None), float32 (float64 for float64 logits), of the transformed logits z.

        z = scale[:, None] * logits                     # tanh_in == 0
        z = scale[:, None] * tanh(tanh_in * logits)     # otherwise: a softcap
        log_p = z.log_softmax(-1)
        log_probs = log_p.gather(-1, token_ids[:, None])[:, 0]
        lse = z.amax(-1), (z - z.amax(-1, keepdim=True)).exp().sum(-1).log()   # two numbers: their sum would lose digits
        entropy = -(log_p.exp() * log_p).sum(-1)        # a logit of -inf counts 0
        squared = log_p.exp().square().sum(-1)          # None without `squares`

    A row of only -inf and a row with NaN or +inf give NaN. Every distinct tanh_in compiles a kernel of its own.
    """
    name = "rows_forward"
    n, V = matrix(name, "logits", logits).shape
    dtype, device = accumulator(logits), logits.device
    token_ids = vector(name, "token_ids", token_ids, n, device, torch.int64)
    scale = vector(name, "scale", scale, n, device, dtype)
    log_probs, lse, entropy = (torch.empty(shape, dtype=dtype, device=device) for shape in (n, (n, 2), n))
    squared = torch.empty_like(entropy) if squares else None
    if n:
        config = config or configs.choose(name, logits)
        with on_device(logits):
            rows_forward_kernel[(n,)](
                logits, token_ids, scale, log_probs, lse, entropy, squared, V, logits.stride(0),
                TANH_IN=float(tanh_in), SQUARES=squares, **configs.tile(config, logits), **config.options(),
            )  # fmt: skip
    return log_probs, lse, entropy, squared
