"""The plain importance-weighted surrogate, and the empty one."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from .batch import TokenBatch
from .surrogate import Surrogate, held_finite


@dataclasses.dataclass(frozen=True)
class Unclipped(Surrogate):
    """L = -A rho: the surrogate of TRPO (arXiv 1502.05477), KL-Cov (arXiv 2505.22617), MDPO (arXiv 2005.09814)."""

    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return -batch.advantages * torch.exp(held_finite(log_ratio, batch.advantages == 0))


@dataclasses.dataclass(frozen=True)
class NoSurrogate(Surrogate):
    """L = 0: no policy term, for pure distillation or entropy-only training (arXiv 2504.20571)."""

    zero_at_zero_advantage: ClassVar[bool] = True
    known_on_policy: ClassVar[bool] = True

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        return batch.log_probs * 0.0
