"""SAPO: a sigmoid gate instead of a clip."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Surrogate, by_sign, held_finite


@dataclasses.dataclass(frozen=True)
class SAPO(Surrogate):
    """L = -4 / tau sigmoid(tau (rho - 1)) A, tau by the sign of A: soft adaptive policy optimization (arXiv 2511.20347).

    At rho = 1 its gradient is that of -rho A. A larger tau narrows the trust region; the paper narrows it for bad actions.
    """

    tau_positive: float = number(1.0, above=0)
    tau_negative: float = number(1.05, above=0)
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        tau = by_sign(batch.advantages > 0, self.tau_positive, self.tau_negative, log_ratio)
        return -4 / tau * torch.sigmoid(tau * torch.expm1(held_finite(log_ratio, True))) * batch.advantages
