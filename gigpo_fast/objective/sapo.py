"""SAPO: a sigmoid gate instead of a clip."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from .batch import TokenBatch
from .block import check_number
from .surrogate import Surrogate, by_sign


@dataclasses.dataclass(frozen=True)
class SAPO(Surrogate):
    """L = -4 / tau sigmoid(tau (rho - 1)) A, tau by the sign of A: soft adaptive policy optimization (arXiv 2511.20347).

    At rho = 1 its gradient is that of -rho A. A larger tau narrows the trust region; the paper narrows it for bad actions.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05
    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("tau_positive", "tau_negative"):
            object.__setattr__(self, name, check_number("SAPO", name, getattr(self, name), above=0))

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        tau = by_sign(batch.advantages > 0, self.tau_positive, self.tau_negative, log_ratio)
        return -4 / tau * torch.sigmoid(tau * torch.expm1(log_ratio)) * batch.advantages
