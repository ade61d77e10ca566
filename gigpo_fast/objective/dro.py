"""Squared log-ratio regularised policy gradients: DRO and Kimi k1.5."""

import dataclasses
from typing import ClassVar

from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Surrogate


@dataclasses.dataclass(frozen=True)
class DRO(Surrogate):
    """L = -A log_prob + beta / 2 (log_prob - old_log_prob)^2: direct reward optimisation (arXiv 2405.19107, A for r - V).

    The ratio block's log-ratio is what is squared, so TokenRatio(None) leaves it unbounded. Not zero at zero advantage off-policy.
    """

    beta: float = number(above=0)
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -batch.advantages * batch.log_probs + 0.5 * self.beta * log_ratio.square()


@dataclasses.dataclass(frozen=True)
class Kimi15(Surrogate):
    """L = -A log_prob + tau / 2 (log_prob - old_log_prob)^2: Kimi k1.5 (arXiv 2501.12599; A the centred reward, tau 0.1 in ROLL)."""

    tau: float = number(0.1, above=0)
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -batch.advantages * batch.log_probs + 0.5 * self.tau * log_ratio.square()
