"""Sums and maxima over the ranks of a group, with the gradient that a sum of all ranks' losses has."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    """Every rank's loss depends on the sum, so a rank's gradient is the sum of all ranks' gradients of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return _reduced(values, group_name, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, None]:
        return _reduced(d_total, ctx.group_name, dist.ReduceOp.SUM), None


def sum_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """`values` summed over the group, on every rank; "" is no group. Differentiable; all ranks must take part, in the backward too."""
    return _Sum.apply(values, group_name) if group_name else values


def largest_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """The elementwise maximum over the group, without gradient."""
    return _reduced(values.detach(), group_name, dist.ReduceOp.MAX) if group_name else values


def _reduced(values: Tensor, group_name: str, operation: dist.ReduceOp) -> Tensor:
    result = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, operation, group=dist.distributed_c10d._resolve_process_group(group_name))
    return result
