"""Gradients times the upstream scalar (a loss scale, 1 / accumulation steps): in the scalar's precision, with one rounding.

On a GPU torch casts a 0-dim factor to the gradient's dtype before it multiplies: 1 / 3 in bfloat16 is off by 2e-3, and so is every
gradient of the model behind it. A CPU multiplies in float32.
"""

from torch import Tensor

from .. import backend

_BLOCK = 1 << 24  # elements that are wide at a time


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient` (contiguous) times the 0-dim `factor`, in place; left alone where that is 1, and never waiting for a GPU."""
    if backend.choose(gradient.device) == "triton":
        from ..kernels.scale import scale_ as launch

        launch(gradient, factor)
        return gradient
    if gradient.device.type == "cpu":
        return gradient if factor.item() == 1 else gradient.mul_(factor)
    return in_blocks_(gradient, factor)


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """As `scale_`, into memory of its own."""
    if gradient.device.type == "cpu" and factor.item() != 1:
        return gradient * factor
    return scale_(gradient.clone(), factor)


def in_blocks_(gradient: Tensor, factor: Tensor) -> Tensor:
    """`scale_` in plain torch on any device, through wide copies of a block at a time."""
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    for block in gradient.view(-1).split(_BLOCK):
        block.copy_(block.to(factor.dtype).mul_(factor))
    return gradient
