"""What the ranks of a process group do together: sums, maxima and rows; in place for statistics, with a gradient where losses need it."""

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
        return sum_over_ranks(d_total, ctx.group_name), None  # differentiable in its turn


def sum_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """`values` summed over the group, on every rank; "" is no group. Differentiable; all ranks must take part, in the backward too."""
    return _Sum.apply(values, group_name) if group_name else values


def largest_over_ranks(values: Tensor, group_name: str) -> Tensor:
    """The elementwise maximum over the group, without gradient; "" is no group."""
    return reduce_in_place(_copy(values), group_of(group_name), largest=True) if group_name else values


def _copy(values: Tensor) -> Tensor:
    return values.detach().clone(memory_format=torch.contiguous_format)


def told(value: Any, process_group: "torch.distributed.ProcessGroup | None") -> list[Any]:
    """A plain Python value of every rank (None: of all there are), in rank order; without torch.distributed this process's alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    every = [None] * torch.distributed.get_world_size(process_group)
    torch.distributed.all_gather_object(every, value, group=process_group)
    return every


def own_rows(counts: list[int], process_group: "torch.distributed.ProcessGroup | None") -> slice:
    """Where this rank's rows lie among those of all ranks; counts[r] is how many rank r has."""
    rank = torch.distributed.get_rank(process_group) if len(counts) > 1 else 0
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def gathered(rows: Tensor, counts: list[int], process_group: "torch.distributed.ProcessGroup | None") -> Tensor:
    """(sum of counts, ...) the rows of all ranks in rank order; padded to the longest on the way, since collectives take equal sizes."""
    if len(counts) == 1:
        return rows.clone()
    longest, trailing = max(counts), rows.shape[1:]
    mine, every = rows.new_zeros(longest, *trailing), rows.new_empty(len(counts) * longest, *trailing)
    mine[: rows.shape[0]] = rows
    torch.distributed.all_gather_into_tensor(every, mine, group=process_group)
    return torch.cat([part[:count] for part, count in zip(every.split(max(longest, 1)), counts)]) if longest else every


def scattered_sum(rows: Tensor, counts: list[int], process_group: "torch.distributed.ProcessGroup | None") -> Tensor:
    """(counts[own rank], ...) this rank's part of the sum over ranks of `rows` (sum of counts, ...)."""
    if len(counts) == 1:
        return rows.clone()
    longest, trailing = max(counts), rows.shape[1:]
    every, mine = rows.new_zeros(len(counts), longest, *trailing), rows.new_empty(longest, *trailing)
    for padded, part in zip(every, rows.split(counts)):
        padded[: part.shape[0]] = part
    torch.distributed.reduce_scatter_tensor(mine, every.view(-1, *trailing), group=process_group)
    return mine[: counts[torch.distributed.get_rank(process_group)]]
