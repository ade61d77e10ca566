"""Segments in Triton: loads the launchers on first use. Rows are sorted by torch, which has a radix sort for GPUs."""

from torch import Tensor

from ..kernels.segments_moments import segment_moments, segment_totals
from ..kernels.segments_scan import discounted_sums as sorted_sums
from .rows import to_rows
from .segments_torch import rows_after, sort_compared, sort_segments

__all__ = ["discounted_sums", "segment_moments", "segment_totals", "sort_compared", "sort_segments"]


def discounted_sums(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, powers: list[float]) -> Tensor:
    """(S,) float64 by row."""
    return to_rows(sorted_sums(values.index_select(0, order), rows_after(counted, order, segment), powers), order)
