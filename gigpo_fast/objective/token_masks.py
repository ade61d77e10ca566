"""Masks that need nothing but the token: its probability, its group, its score, or a seeded draw."""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..settings import number
from .batch import TokenBatch
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class OldProbability(Weighting):
    """1 where the old policy's probability of the token is below `threshold`, else 0: SPO's probability mask (arXiv 2505.23564)."""

    threshold: float = number(0.9, above=0)

    def factor(self, batch: TokenBatch) -> Tensor:
        old = batch.old()
        return (torch.exp(old) < self.threshold).to(old.dtype)


@dataclasses.dataclass(frozen=True)
class MixedGroups(Weighting):
    """0 for degenerate groups, whose answers all scored the same: dynamic sampling's filter (DAPO, arXiv 2503.14476) as a mask.

    Reads extras["group_spread"], the largest minus the smallest score of the token's group; kept where it exceeds `tolerance`.
    The denominator does not change; give the one you want.
    """

    tolerance: float = number(0.0, low=0)
    reads: ClassVar[tuple[str, ...]] = ("group_spread",)
    known_on_policy: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        return (batch.extras["group_spread"] > self.tolerance).to(batch.advantages.dtype)


@dataclasses.dataclass(frozen=True)
class PositiveScores(Weighting):
    """1 where extras["scores"] > 0, else 0: imitate only what succeeded (rejection sampling; VAPO's auxiliary loss, arXiv 2504.05118)."""

    reads: ClassVar[tuple[str, ...]] = ("scores",)
    known_on_policy: ClassVar[bool] = True

    def factor(self, batch: TokenBatch) -> Tensor:
        return (batch.extras["scores"] > 0).to(batch.advantages.dtype)


@dataclasses.dataclass(frozen=True)
class RandomFraction(Weighting):
    """1 for a seeded random `fraction` of the tokens, else 0: DanceGRPO trains a share of the denoising steps (arXiv 2505.07818).

    The draw is a hash of extras["token_keys"] (int64, another one for each token of the whole batch, for example its index) and
    `seed`, so that any split into micro-batches and ranks keeps the same tokens.
    """

    fraction: float = number(low=0, high=1)
    seed: int = 0
    reads: ClassVar[tuple[str, ...]] = ("token_keys",)
    known_on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_seed("RandomFraction", self.seed)

    def factor(self, batch: TokenBatch) -> Tensor:
        return (uniform(batch.extras["token_keys"], self.seed) < self.fraction).to(batch.advantages.dtype)


def check_seed(block: str, seed: int) -> None:
    """Raise unless `seed` lies in what the hash takes."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"{block}: seed must be an int in 0 .. 2^62 - 1, got {seed!r}; 0 is the default")


def uniform(keys: Tensor, seed: int) -> Tensor:
    """(n,) float64 in [0, 1), the same for a key and seed everywhere: splitmix64's finaliser in 64-bit arithmetic that wraps."""
    x = keys.to(torch.int64) * -7046029254386353131 + _mixed(seed)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _shifted(x, shift)) * factor
    return _shifted(x ^ _shifted(x, 31), 11).to(torch.float64) * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift: int64's own keeps the sign


def _mixed(seed: int) -> int:
    value = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64
    return value - 2**64 if value >= 2**63 else value
