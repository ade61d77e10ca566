"""A head whose vocabulary is spread over ranks: one packed collective a chunk forward, one of d_hidden at the end.

Every rank holds all tokens and some columns of the weight. What a row says of its columns (maximum, log-sum, entropy, log-prob of the
token if it is among them) travels; the results are put together from the same numbers in the same order on every rank, so all ranks
take the same decisions, bit by bit.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..collectives import group_of, reduce_in_place


class Shards(NamedTuple):
    """Which columns of the whole vocabulary this rank has."""

    group_name: str  # of the process group; "" for a head that is whole
    columns: list[int]  # of each rank of the group, in order

    @property
    def first_column(self) -> int:
        return sum(self.columns[: torch.distributed.get_rank(group_of(self.group_name))]) if self.group_name else 0

    @property
    def largest(self) -> int:
        """Columns of the widest shard: all ranks cut chunks by it, so that they meet in the same collectives."""
        return max(self.columns, default=0)

    def together(self, token_ids: Tensor, found: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(log_probs, lse, entropy, squared) over the whole vocabulary from those over each rank's columns; token_ids count locally.

        w = softmax over ranks of lse
        entropy = sum_r w_r (entropy_r - log w_r);  squared = sum_r w_r^2 squared_r
        log_prob = log_prob_r + log w_r of the rank r that has the token
        """
        if not self.group_name:
            return found
        log_probs, lse, entropy, squared = found
        mine = torch.stack([lse[:, 0], lse[:, 1], entropy, squared, log_probs], 1)
        every = [torch.empty_like(mine) for _ in self.columns]
        torch.distributed.all_gather(every, mine, group=group_of(self.group_name))
        peaks, logs, entropies, squares, targets = torch.stack(every).unbind(2)  # (ranks, n) each

        possible = peaks != float("-inf")  # a shard whose logits are all -inf has no say; NaN has
        peak = peaks.amax(0)
        log_share = torch.where(possible, (peaks - peak) + logs, float("-inf"))
        log_total = log_share.exp().sum(0).log()
        log_share = log_share - log_total
        share = log_share.exp()
        heard = share != 0
        entropy = torch.where(heard, share * (entropies - log_share), 0).sum(0)
        squared = torch.where(heard, share * share * squares, 0).sum(0)

        whole = token_ids + self.first_column
        owner = torch.zeros_like(whole)
        for end in itertools.accumulate(self.columns[:-1]):  # a tensor of the ends would be copied to the device for every chunk
            owner += whole >= end
        log_probs = (targets + log_share).gather(0, owner.unsqueeze(0)).squeeze(0)
        known = (whole >= 0) & (whole < sum(self.columns))
        return torch.where(known, log_probs, torch.nan), torch.stack([peak, log_total], 1), entropy, squared

    def sum(self, d_hidden: Tensor | None) -> Tensor | None:
        """Add the shares that the ranks' columns give d_hidden, in place and in its own dtype (the compute dtype)."""
        if self.group_name and d_hidden is not None:
            reduce_in_place(d_hidden, group_of(self.group_name))
        return d_hidden


WHOLE = Shards("", [0])  # not an empty list: autograd of custom ops would take that for a list of tensors
