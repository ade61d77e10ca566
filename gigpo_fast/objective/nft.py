"""NFT: supervised learning on right answers, and on wrong ones through the implied negative policy."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .surrogate import Surrogate, by_sign


@dataclasses.dataclass(frozen=True)
class NFT(Surrogate):
    """Negative-aware fine-tuning (arXiv 2505.18116, equations 7 to 10), p the share of right answers in the group.

    Right answer: L = -w(p) log max(rho, floor_positive). Wrong: L = -w(p) negative_weight log max((1 - p rho) / (1 - p), floor_negative).
    The maximum is straight-through: its value is bounded, its gradient is not. w(p) is 1, 1 - p or sqrt((1 - p) / p) for `normalize`
    0, 1 (as Dr. GRPO weighs on-policy) or 2 (as GRPO does). Reads extras["correct"] (bool) and extras["correct_rate"] (p, kept in
    [.02, .98]); advantages are not read. The authors' ratio is TokenRatio((-inf, 10.0)), summed over tokens and divided by 1000.
    """

    negative_weight: float = number(1.0, low=0)
    floor_positive: float = number(0.0, low=0)
    floor_negative: float = number(1.0, low=0)
    normalize: int = 1
    reads: ClassVar[tuple[str, ...]] = ("correct", "correct_rate")
    known_on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normalize not in (0, 1, 2):
            raise ValueError(f"NFT: normalize must be 0, 1 or 2, got {self.normalize!r}; 1 is the authors' choice")

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> Tensor:
        right, rate = batch.extras["correct"] > 0, batch.extras["correct_rate"].clamp(0.02, 0.98)
        ratio = torch.exp(log_ratio)
        good = self._floored(ratio, self.floor_positive)
        bad = self._floored((1 - rate * ratio) / (1 - rate), self.floor_negative)
        chosen = torch.log(torch.where(right, good, bad))  # chosen before the log: the other side may be log(0)
        weight = (torch.ones_like(rate), 1 - rate, torch.sqrt((1 - rate) / rate))[self.normalize]
        return -weight * by_sign(right, 1.0, self.negative_weight, weight) * chosen

    @staticmethod
    def _floored(value: Tensor, floor: float) -> Tensor:
        return value + (value.clamp(min=floor) - value).detach()
