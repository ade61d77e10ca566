"""Rows with equal labels, brought together by sorting, in plain torch on any device.

Labels are only ever compared, never used as sizes or addresses, so negative and huge ones cost nothing. Nothing here reads a
value back to the host, and no sum depends on thread timing: on a GPU float sums are sorted ones, not atomic ones.
"""

import torch
from torch import Tensor


def sort_rows(*keys: Tensor) -> Tensor:
    """(S,) int64, the order that sorts rows by `keys`, the last key first in importance; ties keep the order of the rows."""
    order = torch.argsort(keys[0], stable=True)
    for key in keys[1:]:
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def segment_ids(order: Tensor, *labels: Tensor) -> Tensor:
    """(S,) int64, dense number of each sorted row's segment: a new one starts where any label changes."""
    starts = torch.zeros_like(order, dtype=torch.bool)
    for label in labels:
        ordered = label.index_select(0, order)
        starts[1:] |= ordered[1:] != ordered[:-1]
    return starts.cumsum(0)


def segment_sum(values: Tensor, segment: Tensor, size: int) -> Tensor:
    """(size,) the sum of each segment (zeros beyond the last); floats are added in the order of the rows; differentiable in `values`."""
    total = values.new_zeros(size)
    if _any_order(values):
        return total.index_add(0, segment, values)
    return total.index_put((segment,), values, accumulate=True)  # sorts by segment first; index_add would use atomics


def running_sums(values: Tensor) -> Tensor:
    """(S,) the sums of the first 1, 2, ... values, in one fixed order of additions on each device."""
    if _any_order(values):
        return values.cumsum(0)
    total, stride = values.clone(), 1  # by doubling: the order in which a GPU's scan adds is not fixed
    while stride < total.shape[0]:
        total = torch.cat([total[:stride], total[stride:] + total[:-stride]])
        stride *= 2
    return total


def _any_order(values: Tensor) -> bool:
    """One thread adds, or integers are added: atomics in any order give the same bits."""
    return values.device.type == "cpu" or not values.is_floating_point()


def segment_min(values: Tensor, segment: Tensor, empty: float, *, size: int | None = None) -> Tensor:
    """(S,) the minimum of each segment (of `size` segments, if given), `empty` for those without a row."""
    least = values.new_full(values.shape if size is None else (size,), empty)
    return least.scatter_reduce_(0, segment, values, "amin")


def segment_max(values: Tensor, segment: Tensor, empty: float) -> Tensor:
    """(S,) the maximum of each segment, `empty` beyond the last."""
    return torch.full_like(values, empty).scatter_reduce_(0, segment, values, "amax")


def dense_labels(*labels: Tensor) -> Tensor:
    """(S,) int64, numbers from 0 for the combinations of labels: addresses for sums, whatever the labels are."""
    order = sort_rows(*labels)
    return to_rows(segment_ids(order, *labels), order)


def to_rows(values: Tensor, order: Tensor) -> Tensor:
    """(S,) sorted values back in the order of the rows."""
    return torch.empty_like(values).scatter_(0, order, values)
