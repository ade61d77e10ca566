"""A gradient times the upstream scalar: the product in fp32, rounded once, in place; nothing at all where the scalar is 1."""

import triton
import triton.language as tl
from torch import Tensor

from .arguments import FLOATS, accumulator, fail, on_device

BLOCK, NUM_WARPS = 4096, 8


@triton.jit
def scale_kernel(values, factor, n, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1.0:  # NaN is not 1
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        product = tl.load(values + at, mask=inside, other=0.0).to(by.dtype) * by
        tl.store(values + at, product.to(values.dtype.element_ty), mask=inside)


def scale_(
    values: Tensor,  # any shape, contiguous, any float dtype
    factor: Tensor,  # 0-dim
    *,
    block: int = BLOCK,
) -> None:
    """values = (values.float() * factor).to(values.dtype), in place, without waiting for the device.

    torch's own product of a low-precision tensor and a 0-dim one on a GPU rounds the factor to low precision first.
    """
    name = "scale_"
    if values.dtype not in FLOATS or not values.is_contiguous():
        fail(name, "values", "a contiguous float32, bfloat16, float16 or float64 tensor", values, "call .contiguous()")
    if factor.dim() or factor.device != values.device:
        fail(name, "factor", f"0-dim on {values.device}", factor, "pass the upstream gradient of the loss")
    factor = factor.to(accumulator(values))
    n = values.numel()
    if n:
        with on_device(values):
            scale_kernel[(triton.cdiv(n, block),)](values, factor, n, BLOCK=block, num_warps=NUM_WARPS, enable_fp_fusion=False)
