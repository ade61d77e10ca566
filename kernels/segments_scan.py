"""Discounted sums to the end of each segment, of all rows at once, by doubling.

After the pass with stride d every row holds the discounted sum of its next 2d values. One launch does four such passes: it reads 16
values, d apart, and adds them in the tree that four passes would build, so the bits are those of one pass at a time. The order of
additions depends on the values that follow a row alone, not on where the row stands or in which order programs run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import fail, on_device, vector

BLOCK, NUM_WARPS = 256, 4


@triton.jit
def one(sums, at, left, stride, K: tl.constexpr):
    return tl.load(sums + at + K * stride, mask=left >= K * stride, other=0.0)


@triton.jit
def two(sums, at, left, stride, p1, K: tl.constexpr):
    return one(sums, at, left, stride, K) + p1 * one(sums, at, left, stride, K + 1)


@triton.jit
def four(sums, at, left, stride, p1, p2, K: tl.constexpr):
    return two(sums, at, left, stride, p1, K) + p2 * two(sums, at, left, stride, p1, K + 2)


@triton.jit
def eight(sums, at, left, stride, p1, p2, p4, K: tl.constexpr):
    return four(sums, at, left, stride, p1, p2, K) + p4 * four(sums, at, left, stride, p1, p2, K + 4)


@triton.jit(do_not_specialize=["rows", "stride", "reach"])
def discounted_sums_kernel(
    sums, remaining, out, rows: tl.int64, stride: tl.int64, reach: tl.int64,
    p1: tl.float64, p2: tl.float64, p4: tl.float64, p8: tl.float64, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows
    left = tl.load(remaining + at, mask=inside, other=-1)
    own = tl.load(sums + at, mask=inside, other=0.0)
    left = tl.minimum(left, reach - 1)  # beyond `reach` the discount is 0, and a masked 0 is not 0 * inf
    near = eight(sums, at, left, stride, p1, p2, p4, 0)
    far = eight(sums, at, left, stride, p1, p2, p4, 8)
    tl.store(out + at, tl.where(left > 0, near + p8 * far, own), mask=inside)


def discounted_sums(
    values: Tensor,  # (S,) float64, by segment and in order
    remaining: Tensor,  # (S,) int64, how many rows follow in the same segment; negative: this row stands for itself
    powers: list[float],  # gamma^1, gamma^2, gamma^4, ...
    *,
    block: int = BLOCK,
) -> Tensor:  # (S,) float64
    """The sum of gamma^k values[i + k] over k = 0 .. min(remaining[i], 2^len(powers) - 1).

    for i in reversed(range(S)):
        sums[i] = values[i] + (gamma * sums[i + 1] if remaining[i] > 0 else 0.0)
    """
    name = "discounted_sums"
    if values.dim() != 1 or values.dtype != torch.float64:
        fail(name, "values", "(S,) float64", values, "accumulate in float64 and round the result once")
    rows = values.shape[0]
    values, remaining = values.contiguous(), vector(name, "remaining", remaining, rows, values.device, torch.int64)
    reach = 2 ** len(powers)
    with on_device(values):
        for i in range(0, len(powers), 4):
            out = torch.empty_like(values)
            four_powers = (powers[i : i + 4] + [0.0, 0.0, 0.0])[:4]
            discounted_sums_kernel[(triton.cdiv(rows, block),)](
                values, remaining, out, rows, 2**i, reach, *four_powers, BLOCK=block, num_warps=NUM_WARPS, enable_fp_fusion=False
            )
            values = out
    return values
