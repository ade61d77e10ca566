"""The link: what one comparison adds to the loss, as a function of its log-odds h.

To add one: subclass `Link` as a frozen dataclass with its formula on (P,) tensors, and import it in `__init__`.
"""

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..settings import Settings, number


class Link(Settings):
    """Base of the links: a frozen dataclass with the loss of h."""

    reads_targets: ClassVar[bool] = False

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        """(P,) loss of each comparison, differentiable in h (P,); `targets` (P,) only where the link reads them."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Logistic(Link):
    """L = -(1 - smoothing) log sigma(h) - smoothing log sigma(-h): Bradley-Terry, DPO (arXiv 2305.18290, equation 7).

    `smoothing` is the probability that a label is wrong (conservative DPO, E. Mitchell's note of 2023).
    """

    smoothing: float = number(0.0, low=0.0, high=0.5)

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        if self.smoothing == 0:
            return -logsigmoid(h)
        return -(1 - self.smoothing) * logsigmoid(h) - self.smoothing * logsigmoid(-h)


@dataclasses.dataclass(frozen=True)
class SoftLabel(Link):
    """L = -t log sigma(h) - (1 - t) log sigma(-h), t the given probability that the chosen one is better: DNO (arXiv 2404.03715)."""

    reads_targets: ClassVar[bool] = True

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return -targets * logsigmoid(h) - (1 - targets) * logsigmoid(-h)


@dataclasses.dataclass(frozen=True)
class Robust(Link):
    """L = (-(1 - e) log sigma(h) + e log sigma(-h)) / (1 - 2 e): unbiased where labels flip with probability e (arXiv 2403.00409)."""

    flip_rate: float = number(0.1, low=0.0, high=0.5 - 1e-9)

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return (self.flip_rate * logsigmoid(-h) - (1 - self.flip_rate) * logsigmoid(h)) / (1 - 2 * self.flip_rate)


@dataclasses.dataclass(frozen=True)
class Square(Link):
    """L = scale (h - target)^2: IPO (arXiv 2310.12036, equation 17, target = 1 / (2 tau)), INPO, SPPO, EGPO, CoPG.

    `target` None reads one target a comparison: (p1 - p2) / beta in EGPO, the reward difference in CoPG.
    """

    target: float | None = None
    scale: float = number(1.0, above=0.0)

    @property
    def reads_targets(self) -> bool:
        return self.target is None

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return self.scale * (h - (targets if self.target is None else self.target)) ** 2


@dataclasses.dataclass(frozen=True)
class Hinge(Link):
    """L = max(margin - h, 0): SLiC (arXiv 2305.10425, equation 4)."""

    margin: float = 1.0

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return torch.relu(self.margin - h)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Link):
    """L = sigma(-h) = 1 - sigma(h): KTO (arXiv 2402.01306, equation 8) and APO (arXiv 2408.06266); bounded, so outliers lose their pull."""

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return torch.sigmoid(-h)


@dataclasses.dataclass(frozen=True)
class Linear(Link):
    """L = -h: the score function itself, unbounded (XPO's optimism term, arXiv 2405.21046)."""

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return -h


@dataclasses.dataclass(frozen=True)
class LabelKL(Link):
    """L = KL((sigma(h), sigma(-h)) || (1 - smoothing, smoothing)): EXO of pairs (arXiv 2402.00856, equation 16)."""

    smoothing: float = number(1e-3, above=0.0, high=0.5)

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        good, bad = logsigmoid(h), logsigmoid(-h)
        return torch.sigmoid(h) * (good - math.log1p(-self.smoothing)) + torch.sigmoid(-h) * (bad - math.log(self.smoothing))


@dataclasses.dataclass(frozen=True)
class LogisticSigmoidMix(Link):
    """L = (1 - m) (-log sigma(h)) + m exp(-h) with m = sigma(h / temperature): DiscoPOP (arXiv 2406.08414, equation 5)."""

    temperature: float = number(0.05, above=0.0)

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        mix = torch.sigmoid(h / self.temperature)
        return -(1 - mix) * logsigmoid(h) + mix * torch.exp(-h)


@dataclasses.dataclass(frozen=True)
class PairClip(Link):
    """L = -min(t h, t clip(h, -epsilon, epsilon)) / 2, t the given weighted reward difference: P3O's joint form (arXiv 2310.00212).

    h is log(rho_1 / rho_2), so the old policy stands as the reference; t = (r_1 - r_2) rho_1 rho_2 without gradient.
    """

    epsilon: float = number(0.2, above=0.0)
    reads_targets: ClassVar[bool] = True

    def loss(self, h: Tensor, targets: Tensor | None) -> Tensor:
        return -torch.minimum(targets * h, targets * h.clamp(-self.epsilon, self.epsilon)) / 2
