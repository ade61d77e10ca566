"""CLIP-B and CLIP-V: bad tokens whose punishment would change the entropy most are left out."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .block import Scope
from .selection import descending_rank
from .weighting import Weighting


def _discriminator(batch: TokenBatch) -> Tensor:
    """(n,) p (H + log p): a push on this token's logit lowers the entropy by this much."""
    log_probs = batch.log_probs.detach()
    return torch.exp(log_probs) * (batch.entropy.detach() + log_probs)


@dataclasses.dataclass(frozen=True)
class ClipB(Weighting):
    """0 for bad tokens (A < 0) with S < mean S - mu std S, S = p (H + log p), else 1: Clip_B of arXiv 2602.03392 (mu 2.5 in Trinity-RFT).

    Mean and population deviation over the trained tokens of this call, or `bound` (mean - mu std) from outside, of the whole batch.
    """

    mu: float = number(2.5, low=0)
    bound: float | None = None
    needs_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope.BATCH if self.bound is None else Scope.TOKEN)

    def factor(self, batch: TokenBatch) -> Tensor:
        found = _discriminator(batch)
        bound = self.bound
        if bound is None:
            mean = batch.mean(found)
            bound = mean - self.mu * batch.mean((found - mean).square()).sqrt()
        return (~((batch.advantages < 0) & (found < bound))).to(found.dtype)


@dataclasses.dataclass(frozen=True)
class ClipV(Weighting):
    """0 for tokens with A <= 0 (A = 0 too, unlike ClipB) and x > mu std x, else 1, x = E - S: Clip_V of arXiv 2602.03392.

    S = p (H + log p), and E, its mean over the vocabulary under the policy, is read from extras["expected_discriminator"]. x is compared as
    it is, not its distance from a mean. If more than `max_fraction` of the trained tokens would go, at most max(int(max_fraction N), 1)
    bad ones do, those of largest x. mu 8.5 and 1e-4: Trinity-RFT's defaults. The deviation is the population's over this call's tokens.
    """

    mu: float = number(8.5, low=0)
    max_fraction: float = number(1e-4, low=0, high=1)
    needs_entropy: ClassVar[bool] = True
    scope: ClassVar[Scope] = Scope.BATCH
    reads: ClassVar[tuple[str, ...]] = ("expected_discriminator",)

    def factor(self, batch: TokenBatch) -> Tensor:
        x, trained = batch.extras["expected_discriminator"] - _discriminator(batch), batch.trained()
        mean = batch.mean(x)
        over = trained & (x > self.mu * batch.mean((x - mean).square()).sqrt()) & (batch.advantages <= 0)
        bad = over & (batch.advantages < 0)
        count = batch.count().double()
        most = torch.floor(count * self.max_fraction + 1e-9).clamp(min=1)
        too_many = (over.sum() > count * self.max_fraction) & (bad.sum() > most)
        dropped = torch.where(too_many, bad & (descending_rank(x, bad) < most), over)
        return (~dropped).to(x.dtype)
