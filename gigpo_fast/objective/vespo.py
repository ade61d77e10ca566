"""VESPO: a smooth weight of the whole sequence's ratio."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Surrogate, by_sign


@dataclasses.dataclass(frozen=True)
class VESPO(Surrogate):
    """L = -sg(exp(lambda + k log w - lambda w)) A log_prob, w the ratio: variational sequence-level policy optimization (arXiv 2602.10693).

    k and lambda by the sign of A (A = 0 counts as positive). At w = 1 the weight is 1. The ratio is meant to be that of the whole
    sequence, SequenceProductRatio(log_ratio_clip=(log 1e-8, 20.0), token_clip=20.0). Defaults are TRL's.
    """

    k_positive: float = number(2.0, low=0)
    lambda_positive: float = number(3.0, low=0)
    k_negative: float = number(3.0, low=0)
    lambda_negative: float = number(2.0, low=0)
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        log_w, good = log_ratio.detach(), batch.advantages >= 0
        k = by_sign(good, self.k_positive, self.k_negative, log_w)
        rate = by_sign(good, self.lambda_positive, self.lambda_negative, log_w)
        return -torch.exp(rate + k * log_w - rate * torch.exp(log_w)) * batch.advantages * batch.log_probs
