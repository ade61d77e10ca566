"""The clipped policy loss of single tokens (GRPO, GiGPO, PPO), straight from logits: the value of each token and what its backward needs.

A fused twin of the objective's formula in torch, for token ratios: asymmetric and dual clip, a ceiling on the ratio, the K3 estimate of the
KL divergence to a reference, an entropy bonus. The row is read once; `rows_backward` then turns (d_log_probs, d_entropy) into the gradient.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .arguments import accumulator, fail, matrix, on_device, vector
from .common import expm1, row_log_prob

CLIPPED_LOW, CLIPPED_HIGH, DUAL_CLIPPED, RATIO_CLAMPED, DROPPED, NONFINITE = 1, 2, 4, 8, 16, 32


class ClipRows(NamedTuple):
    """Per-row results of `clip_rows_forward`, each (n,) but lse."""

    log_probs: Tensor
    lse: Tensor  # (n, 2): the maximum, and the log of the sum above it
    entropy: Tensor
    losses: Tensor  # this token's share of the loss
    d_log_probs: Tensor  # d losses / d log_probs
    d_entropy: Tensor  # d losses / d entropy
    flags: Tensor  # int32, sum of the constants above


@triton.jit
def clamp(x, lowest, highest):
    """x within [lowest, highest], and whether the gradient stops (as in torch.clamp, not on the bounds). NaN stays, and does not stop."""
    return tl.where(x < lowest, lowest, tl.where(x > highest, highest, x)), (x < lowest) | (x > highest)


@triton.jit
def surrogate(log_prob, old, A, lower, upper, dual, ceiling, log_ratio_low, log_ratio_high):
    """max(-A r, -A clip(r)), at most -dual A where A < 0: its value, its derivative by log_prob, and flags."""
    log_ratio, clamped = clamp(log_prob - old, log_ratio_low, log_ratio_high)
    r = tl.exp(log_ratio)
    r_capped, capped = clamp(r, float("-inf"), ceiling)
    slope = tl.where(clamped | capped, 0.0, -A * r)  # d(-A r)/d log_prob
    r_clipped, _ = clamp(r_capped, lower, upper)

    plain, clipped = -A * r_capped, -A * r_clipped
    clip_wins = clipped > plain  # so r is out of range; within it both are one function. NaN keeps `plain`, which is NaN too
    loss = tl.where(clip_wins, clipped, plain)
    slope = tl.where(clip_wins, 0.0, slope)

    worst = -dual * A
    dual_wins = (A < 0.0) & (loss > worst)
    dual_ties = (A < 0.0) & (loss == worst)  # a tie shares the gradient, as in torch.minimum
    slope = tl.where(dual_wins, 0.0, tl.where(dual_ties, 0.5 * slope, slope))
    loss = tl.where(dual_wins, worst, loss)

    # The numbers are those of the constants at the top of this file.
    low_flag = tl.where(clip_wins & (A < 0.0) & (r_capped < lower), 1, 0)
    high_flag = tl.where(clip_wins & (A > 0.0) & (r_capped > upper), 2, 0)
    flags = low_flag + high_flag + tl.where(dual_wins, 4, 0) + tl.where(clamped, 8, 0)

    # A ratio with a probability of 0 on either side says nothing about the policy. NaN is no such case: it must show.
    dropped = ((tl.abs(log_prob) == float("inf")) | (tl.abs(old) == float("inf"))) & (A == A)
    return tl.where(dropped, 0.0, loss), tl.where(dropped, 0.0, slope), tl.where(dropped, 16, flags)


@triton.jit
def k3(log_prob, ref, input_clip, output_clip):
    """exp(x) - x - 1 at x = ref - log_prob, both clamped, and its derivative by log_prob."""
    x, clamped = clamp(ref - log_prob, -input_clip, input_clip)
    growth = expm1(x)
    kl, stopped = clamp(growth - x, -output_clip, output_clip)
    return kl, tl.where(clamped | stopped, 0.0, -growth)


@triton.jit
def clip_token(
    log_prob, H, A, old, ref, weight,
    lower, upper, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
    HAS_REF: tl.constexpr,
):  # fmt: skip
    """One token's (loss, d loss/d log_prob, d loss/d entropy, flags): the whole formula, element by element."""
    loss, slope, flags = surrogate(log_prob, old, A, lower, upper, dual, ceiling, log_ratio_low, log_ratio_high)
    if HAS_REF:
        kl, kl_slope = k3(log_prob, ref, kl_input_clip, kl_output_clip)
        loss += kl_coefficient * kl
        slope += kl_coefficient * kl_slope
    loss -= entropy_coefficient * H

    counts = weight != 0.0  # a weight of 0 hides whatever the row holds
    loss = tl.where(counts, weight * loss, 0.0)
    flags += tl.where(tl.abs(loss) < float("inf"), 0, 32)
    return loss, tl.where(counts, weight * slope, 0.0), -entropy_coefficient * weight, tl.where(counts, flags, 0)


@triton.jit
def clip_rows_forward_kernel(
    logits, token_ids, scale, advantages, old_log_probs, ref_log_probs, weights,
    log_probs, lse, entropy, losses, d_log_probs, d_entropy, flags,
    V, stride,
    lower, upper, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
    TANH_IN: tl.constexpr, HAS_OLD: tl.constexpr, HAS_REF: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(scale + row)
    dtype: tl.constexpr = factor.dtype
    token = tl.load(token_ids + row)
    log_prob, peak, log_total, H, _ = row_log_prob(logits + row * stride, token, V, factor, TANH_IN, BLOCK, LANES, WIDTH)

    old = tl.load(old_log_probs + row).to(dtype) if HAS_OLD else log_prob  # on-policy: the ratio is exactly 1
    ref = tl.load(ref_log_probs + row).to(dtype) if HAS_REF else log_prob
    loss, c, e, flag = clip_token(
        log_prob, H, tl.load(advantages + row).to(dtype), old, ref, tl.load(weights + row).to(dtype),
        lower, upper, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
        HAS_REF,
    )  # fmt: skip
    tl.store(log_probs + row, log_prob)
    tl.store(lse + 2 * row, peak)
    tl.store(lse + 2 * row + 1, log_total)
    tl.store(entropy + row, H)
    tl.store(losses + row, loss)
    tl.store(d_log_probs + row, c)
    tl.store(d_entropy + row, e)
    tl.store(flags + row, flag)


def clip_rows_forward(
    logits: Tensor,  # (n, V) float, rows contiguous, any row stride
    token_ids: Tensor,  # (n,) int64
    scale: Tensor,  # (n,) float32 (float64 for float64 logits)
    tanh_in: float,
    advantages: Tensor,  # (n,) float
    old_log_probs: Tensor | None,  # (n,) float; None: on-policy
    ref_log_probs: Tensor | None,  # (n,) float; None: no KL term
    weights: Tensor,  # (n,) float, the token's weight over the denominator
    *,
    low: float,
    high: float,
    dual: float | None = None,
    ceiling: float | None = None,
    log_ratio_low: float | None = None,
    log_ratio_high: float | None = None,
    kl_coefficient: float = 0.0,
    kl_input_clip: float | None = None,
    kl_output_clip: float | None = None,
    entropy_coefficient: float = 0.0,
    config: configs.Config | None = None,
) -> ClipRows:
    """The clipped loss of each token, with its derivatives by the token's log-prob and by the row's entropy.

        r = (log_probs - old_log_probs).clamp(log_ratio_low, log_ratio_high).exp().clamp(max=ceiling)
        L = torch.maximum(-A * r, -A * r.clamp(1 - low, 1 + high))
        L = torch.where(A < 0, torch.minimum(L, -dual * A), L)
        x = (ref_log_probs - log_probs).clamp(-kl_input_clip, kl_input_clip)
        kl = (x.exp() - x - 1).clamp(-kl_output_clip, kl_output_clip)
        losses = weights * (L + kl_coefficient * kl - entropy_coefficient * entropy)

    None means no bound. Where log_probs or old_log_probs is infinite, L counts 0; NaN is kept. A weight of 0 gives exact zeros.
    The numbers are run-time arguments of the kernel, held in float32 also for float64 logits: a schedule does not recompile it.
    """
    name = "clip_rows_forward"
    n, V = matrix(name, "logits", logits).shape
    dtype, device = accumulator(logits), logits.device
    if kl_coefficient != 0.0 and ref_log_probs is None:
        fail(name, "ref_log_probs", "a tensor where kl_coefficient is not 0", "None", "pass the reference's log-probs or kl_coefficient=0")
    if kl_coefficient == 0.0:
        ref_log_probs = None
    token_ids = vector(name, "token_ids", token_ids, n, device, torch.int64)
    scale = vector(name, "scale", scale, n, device, dtype)
    advantages = vector(name, "advantages", advantages, n, device)
    weights = vector(name, "weights", weights, n, device)
    if old_log_probs is not None:
        old_log_probs = vector(name, "old_log_probs", old_log_probs, n, device)
    if ref_log_probs is not None:
        ref_log_probs = vector(name, "ref_log_probs", ref_log_probs, n, device)
    values = [torch.empty(shape, dtype=dtype, device=device) for shape in (n, (n, 2), n, n, n, n)]
    results = ClipRows(*values, torch.empty(n, dtype=torch.int32, device=device))
    if n:
        config = config or configs.choose(name, logits)
        with on_device(logits):
            clip_rows_forward_kernel[(n,)](
                logits, token_ids, scale, advantages, old_log_probs, ref_log_probs, weights, *results, V, logits.stride(0),
                *kernel_numbers(
                    low, high, dual, ceiling, log_ratio_low, log_ratio_high,
                    kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
                ),
                TANH_IN=float(tanh_in), HAS_OLD=old_log_probs is not None, HAS_REF=ref_log_probs is not None,
                **configs.tile(config, logits), **config.options(),
            )  # fmt: skip
    return results


def kernel_numbers(
    low, high, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient
) -> tuple[float, ...]:
    """The options as the kernel takes them: the clip as two bounds of the ratio, None as infinity."""
    bounds = [float("inf") if bound is None else float(bound) for bound in (dual, ceiling, log_ratio_high, kl_input_clip, kl_output_clip)]
    dual, ceiling, log_ratio_high, kl_input_clip, kl_output_clip = bounds
    log_ratio_low = -float("inf") if log_ratio_low is None else float(log_ratio_low)
    ratio = 1.0 - low, 1.0 + high, dual, ceiling, log_ratio_low, log_ratio_high
    return *ratio, float(kl_coefficient), kl_input_clip, kl_output_clip, float(entropy_coefficient)
