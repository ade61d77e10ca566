"""DisCO: right answers of a group are scored above wrong ones, without clipping and without normalising by the group."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .surrogate import Surrogate


@dataclasses.dataclass(frozen=True)
class GroupContrast(Surrogate):
    """L = -(mean over right answers of s - tau log mean over wrong answers of exp(s / tau)) per group: DisCO (arXiv 2505.12366).

    `temperature` None is the limit of large tau, the mean over wrong answers (DisCO-b). s is the mean log-prob of the
    sequence's tokens, or with `ratio_score` the mean ratio. Groups with one kind of answer only add nothing. Reads
    extras["group_ids"] (int64) and extras["correct"] (bool), both constant over a sequence. Use SequenceMeanTokenMean() and the
    number of groups as the denominator: each answer's loss is spread evenly over its tokens. A call must hold whole groups.
    The released code of the log-mean-exp has the right gradient and another value; this is the value.
    """

    temperature: float | None = number(None, above=0)
    ratio_score: bool = False
    reads: ClassVar[tuple[str, ...]] = ("group_ids", "correct")
    scope: ClassVar[Scope] = Scope.BATCH
    needs_sequences: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        groups, right = batch.extras["group_ids"], batch.extras["correct"] > 0
        share = 1 / batch.sequence_lengths()  # the shares of a sequence's tokens add up to one answer
        rights = batch.label_sums(torch.where(right, share, 0), groups)
        wrongs = batch.label_sums(torch.where(right, 0, share), groups)
        mixed = (rights > 0.5) & (wrongs > 0.5)
        rights, wrongs = rights.clamp(min=1), wrongs.clamp(min=1)
        score = batch.sequence_means(torch.exp(log_ratio) if self.ratio_score else batch.log_probs)
        if self.temperature is None:
            wrong_score = score
        else:  # shifted by the group's largest score, so that nothing overflows
            scaled = score / self.temperature
            top = batch.label_largest(torch.where(right, float("-inf"), scaled).detach(), groups)
            top = torch.where(mixed, top, 0)
            inner = torch.where(mixed & ~right, scaled - top, 0)
            mean = batch.label_sums(torch.where(right, 0, share * torch.exp(inner)), groups) / wrongs
            wrong_score = self.temperature * (torch.log(torch.where(mixed, mean, 1)) + top)
        return torch.where(mixed, torch.where(right, -score / rights, wrong_score / wrongs), 0)
