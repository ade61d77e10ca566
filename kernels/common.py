"""Device functions that the row kernels share: the logit transform, one pass of row statistics, expm1 and tanh.

A row is read once. Every thread keeps its own running maximum, and its own sums of exponentials, of their squares and of p*z, over the
elements that it loads itself (a tile seen as REPEATS x LANES x WIDTH, reduced over the first and last axis). So a maximum costs no exchange
between threads, and a tile costs one exponential an element plus one a thread to rescale. The threads' results meet once, at the row's end.
Arithmetic is fp32, or fp64 when `scale` is. NaN reaches every result through the sums: hardware maxima may drop it.
"""

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation near 0 (Kahan): the error of exp(x) divides out against log of the same number."""
    y = tl.exp(x)
    ordinary = (y != 1.0) & (x >= -40.0)
    quotient = (y - 1.0) * (x / tl.log(tl.where(ordinary, y, 2.0)))
    finite = tl.where(x > 80.0, y, quotient)  # past that log(y) may be infinite, and the 1 is lost anyway
    far = tl.where(x < -40.0, y - 1.0, finite)  # nothing cancels there, and log(y) of a subnormal y has few digits
    return tl.where(y == 1.0, x, far)


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and its derivative, both to full relative precision: a Padé quotient near 0, exponentials elsewhere."""
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    slope = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))  # 1 - t*t would cancel where t is near 1
    q = x * x
    near = x * (135135.0 + q * (17325.0 + q * (378.0 + q))) / (135135.0 + q * (62370.0 + q * (3150.0 + q * 28.0)))
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x < 0.0, -far, far)), slope


@triton.jit
def transform(x, scale, TANH_IN: tl.constexpr):
    """The transformed logit z: scale * x, or scale * tanh(TANH_IN * x) under a softcap."""
    if TANH_IN == 0.0:
        return x * scale
    else:
        t, _ = tanh_and_slope(x * TANH_IN)
        return t * scale


@triton.jit
def or_zero(x):
    """x, with 0 in place of -inf: a maximum that can be subtracted."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def rescaling(top, base):
    """Factors that move sums taken relative to `top` to a higher `base`: exp(top - base), and that times (top - base)."""
    drop = tl.where(top == float("-inf"), 0.0, top - base)  # -inf: nothing was summed yet, any finite factor will do
    rescale = tl.exp(drop)
    return rescale, rescale * drop  # the product before it meets a sum: drop may be near -3e38, where 0 * overflow is NaN


@triton.jit
def row_statistics(row, V, scale, TANH_IN: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(max z, sum e, sum e (z - max), sum e^2) with e = exp(z - max), of one row of V elements that starts at pointer `row`."""
    dtype: tl.constexpr = scale.dtype
    REPEATS: tl.constexpr = BLOCK // (LANES * WIDTH)
    columns = tl.arange(0, BLOCK)
    top = tl.full([LANES], float("-inf"), dtype)
    total = tl.zeros([LANES], dtype)
    weighted = tl.zeros([LANES], dtype)
    squared = tl.zeros([LANES], dtype)
    for start in range(0, V, BLOCK):
        inside = start + columns < V
        x = tl.load(row + start + columns, mask=inside, other=0.0).to(dtype)
        z = tl.where(inside, transform(x, scale, TANH_IN), float("-inf"))
        z = tl.reshape(z, [REPEATS, LANES, WIDTH])

        grown = tl.maximum(top, tl.max(tl.max(z, axis=2), axis=0))
        base = or_zero(grown)
        rescale, shift = rescaling(top, base)

        d = z - base[None, :, None]
        p = tl.exp(d)
        pd = p * tl.maximum(d, -1.0e30)  # p = 0 where d = -inf, and 0 * -inf must count 0
        weighted = rescale * weighted + shift * total + tl.sum(tl.sum(pd, axis=2), axis=0)
        total = rescale * total + tl.sum(tl.sum(p, axis=2), axis=0)
        squared = rescale * rescale * squared + tl.sum(tl.sum(p * p, axis=2), axis=0)
        top = grown

    peak = tl.max(top, axis=0)
    rescale, shift = rescaling(top, or_zero(peak))
    weighted = tl.sum(rescale * weighted + shift * total, axis=0)
    total = tl.sum(rescale * total, axis=0)
    squared = tl.sum(rescale * rescale * squared, axis=0)
    return peak, total, weighted, squared


@triton.jit
def row_log_prob(row, token, V, scale, TANH_IN: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(log-prob of `token`, maximum, log of the sum above it, entropy, sum of p^2) of one row.

    A token outside [0, V) gives NaN and is never read.
    """
    dtype: tl.constexpr = scale.dtype
    known = (token >= 0) & (token < V)
    target = transform(tl.load(row + tl.where(known, token, 0)).to(dtype), scale, TANH_IN)
    peak, total, weighted, squared = row_statistics(row, V, scale, TANH_IN, BLOCK, LANES, WIDTH)
    log_total = tl.log(total)
    # The maximum goes before the logarithm does, so an offset common to the row costs no digits.
    log_prob = tl.where(known, (target - or_zero(peak)) - log_total, float("nan"))
    entropy = log_total - weighted / total  # below 0 only by the rounding of exp and log
    return log_prob, peak, log_total, tl.where(entropy < 0.0, 0.0, entropy), squared / (total * total)
