"""The rows of each group in the order of their scores, and sums over those that stand below or above."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import sort_rows
from .layout import backward_sum, forward_sum


class Ranked(NamedTuple):
    """Rows sorted by group and score, with what is known of each group, all at the sorted places."""

    order: Tensor  # (S,) int64, the row at each place; counted rows stand first in their group
    counted: Tensor  # (S,) bool
    scores: Tensor  # (S,) float64 minus the highest of the group, so that its best rows hold exactly 0
    gap: Tensor  # (S,) float64, how far the row stands above the one below it; 0 for the lowest and between equal scores
    count: Tensor  # (S,) float64, counted rows of the group
    place: Tensor  # (S,) float64, 0 for the lowest score of the group
    first: Tensor  # (S,) bool, the first row of a group

    def below(self, values: Tensor) -> Tensor:
        """(S,) the sum over the counted rows of the group that stand below."""
        values = torch.where(self.counted, values, 0.0)
        return forward_sum(values.unsqueeze(0), (~self.first).to(values.dtype).unsqueeze(0))[0] - values

    def above(self, values: Tensor) -> Tensor:
        """(S,) the sum over the counted rows of the group that stand above."""
        values = torch.where(self.counted, values, 0.0)
        last = torch.ones_like(self.first)
        last[:-1] = self.first[1:]
        return backward_sum(values.unsqueeze(0), (~last).to(values.dtype).unsqueeze(0))[0] - values

    def total(self, values: Tensor) -> Tensor:
        """(S,) the sum over all counted rows of the group."""
        return self.below(values) + torch.where(self.counted, values, 0.0) + self.above(values)

    def back(self, values: Tensor) -> Tensor:
        """(S,) in the order of the rows, 0 where not counted."""
        return torch.empty_like(values).scatter_(0, self.order, torch.where(self.counted, values, 0.0))


def rank_rows(values: Tensor, counted: Tensor, labels: Tensor) -> Ranked:
    """Sort float64 scores within their groups."""
    order = sort_rows(values, ~counted, labels)
    ordered = labels.index_select(0, order)
    first = torch.ones_like(counted)
    first[1:] = ordered[1:] != ordered[:-1]
    scores, used = values.index_select(0, order), counted.index_select(0, order)
    gap = torch.zeros_like(scores)
    gap[1:] = torch.where(used[1:] & ~first[1:], scores[1:] - scores[:-1], 0.0)
    ranked = Ranked(order, used, scores, gap, scores, scores, first)
    ones = torch.ones_like(scores)
    ranked = ranked._replace(count=ranked.total(ones), place=ranked.below(ones))
    top = ranked.total(torch.where(ranked.place == ranked.count - 1.0, scores, 0.0))
    return ranked._replace(scores=torch.where(used, scores - top, 0.0))


def log_binomial(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k), -inf where k < 0 or k > n."""
    inside = (k >= 0) & (k <= n)
    n, k = torch.where(inside, n, 0.0), torch.where(inside, k, 0.0)
    return torch.where(inside, torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1), -float("inf"))
