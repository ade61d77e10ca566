"""Ratios between the token's and its sequence's."""

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from .batch import TokenBatch
from .block import Scope
from .ratio import Bound, Ratio


@dataclasses.dataclass(frozen=True)
class AveragedRatio(Ratio):
    """rho = (rho_token + rho_sequence) / 2, or with `geometric` sqrt(rho_token rho_sequence): ART's "average" and "geometric_average".

    rho_sequence = exp(mean over the sequence of log_prob - old_log_prob), as in SequenceRatio; the gradient goes through both.
    """

    geometric: bool = False
    log_ratio_clip: Bound = 20.0
    scope: ClassVar[Scope] = Scope.SEQUENCE
    needs_sequences: ClassVar[bool] = True

    def unclamped(self, batch: TokenBatch) -> Tensor:
        own = batch.log_ratio()
        mean = batch.sequences.means(own)
        return (own + mean) / 2 if self.geometric else torch.logaddexp(own, mean) - math.log(2)
