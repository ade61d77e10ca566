"""Segments in C++ for CPU tensors, on torch's own threads: loads the library on first use."""

from typing import Any

import torch
from torch import Tensor

from .. import backend, native_memory
from ..once import once


def sort_segments(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(order, segment), both (S,) int64, by a radix sort over the bits that the keys use."""
    return sort_compared(labels, within)[:2]


def sort_compared(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """`sort_segments`, and whether two rows have all keys equal, 0-dim bool: the sort sees it in passing."""
    order, segment, *repeated = native_memory.call(
        "sort_segments", _ops().segments_sort, [key.contiguous() for key in labels], [key.contiguous() for key in within]
    )
    return order, segment, repeated[0] if repeated else None  # a library that was built earlier does not say


def discounted_sums(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, powers: list[float]) -> Tensor:
    """(S,) float64 by row."""
    powers = torch.tensor(powers, dtype=torch.float64, device="cpu")
    return native_memory.call(
        "discounted_sums", _ops().segments_discounted_sums, values.contiguous(), counted.contiguous(), order, segment, powers
    )


def segment_totals(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor) -> Tensor:
    """(S,) float64 by row."""
    return native_memory.call("segment_totals", _ops().segments_totals, values.contiguous(), counted.contiguous(), order, segment)


def segment_moments(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, ddof: int) -> tuple[Tensor, ...]:
    """(count, mean, std, flat, number), each (S,) by row."""
    return native_memory.call("segment_moments", _ops().segments_moments, values.contiguous(), counted.contiguous(), order, segment, ddof)


@once
def _ops() -> Any:
    reason = backend.why_not_native(torch.device("cpu"))
    if reason is not None:
        raise RuntimeError(f"segments_native: {reason}")

    @torch.library.register_fake("gigpo_fast_C::segments_sort")
    def _(labels, within):
        return torch.empty_like(labels[0]), torch.empty_like(labels[0]), labels[0].new_empty((), dtype=torch.bool)

    @torch.library.register_fake("gigpo_fast_C::segments_discounted_sums")
    def _(values, counted, order, segment, powers):
        return torch.empty_like(values)

    @torch.library.register_fake("gigpo_fast_C::segments_totals")
    def _(values, counted, order, segment):
        return torch.empty_like(values)

    @torch.library.register_fake("gigpo_fast_C::segments_moments")
    def _(values, counted, order, segment, ddof):
        return *(torch.empty_like(values) for _ in range(3)), torch.empty_like(counted), torch.empty_like(segment)

    return torch.ops.gigpo_fast_C
