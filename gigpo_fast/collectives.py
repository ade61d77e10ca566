"""Sums and maxima over the ranks of a process group, in place for statistics, and with a gradient for what losses depend on."""

from typing import Any

import torch
from torch import Tensor


def group_of(name: str) -> "torch.distributed.ProcessGroup":
    """The process group of that `group_name`: the one use of a private function, since names are what custom ops can carry."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)


def reduce_in_place(values: Tensor, process_group: "torch.distributed.ProcessGroup | None", *, largest: bool = False) -> Tensor:
    """`values` summed over the ranks of a group (or their elementwise maximum), in place and without gradient; None is no group."""
    if process_group is not None:
        operations = torch.distributed.ReduceOp
        torch.distributed.all_reduce(values, operations.MAX if largest else operations.SUM, group=process_group)
    return values


class _Sum(torch.autograd.Function):
    """Every rank's loss depends on the sum, so a rank's gradient is the sum of all ranks' gradients of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return reduce_in_place(_copy(values), group_of(group_name))

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, None]:
        return reduce_in_place(_copy(d_total), group_of(ctx.group_name)), None


def sum_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """`values` summed over the group, on every rank; "" is no group. Differentiable; all ranks must take part, in the backward too."""
    return _Sum.apply(values, group_name) if group_name else values


def largest_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """The elementwise maximum over the group, without gradient; "" is no group."""
    return reduce_in_place(_copy(values), group_of(group_name), largest=True) if group_name else values


def _copy(values: Tensor) -> Tensor:
    return values.detach().clone(memory_format=torch.contiguous_format)
