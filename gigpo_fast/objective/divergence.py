"""The divergence k(log_prob, ref): how far the policy moved from an anchor policy, estimated from the sampled token.

Estimators are those of http://joschu.net/blog/kl-approx.html with x = log_prob - ref_log_prob:
k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x.
"""

import dataclasses

import torch
from torch import Tensor

from ..settings import number
from .block import Block


class Estimator(Block):
    """An estimate of the divergence from one sample."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """(n,) estimate, differentiable in log_probs."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class K1(Estimator):
    """x: unbiased, can be negative; its gradient alone has expectation 0. x is clamped to +-input_clip, if given."""

    input_clip: float | None = number(None, above=0)

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        x = log_probs - ref_log_probs
        return x if self.input_clip is None else x.clamp(-self.input_clip, self.input_clip)


@dataclasses.dataclass(frozen=True)
class AbsoluteKL(Estimator):
    """|x|: the size of the move, whichever way (verl's "abs")."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return (log_probs - ref_log_probs).abs()


@dataclasses.dataclass(frozen=True)
class K2(Estimator):
    """x^2 / 2: biased, its gradient is that of the true divergence on-policy. x is clamped to +-input_clip, if given."""

    input_clip: float | None = number(None, above=0)

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        x = log_probs - ref_log_probs
        return 0.5 * (x if self.input_clip is None else x.clamp(-self.input_clip, self.input_clip)).square()


@dataclasses.dataclass(frozen=True)
class K3(Estimator):
    """exp(-x) - 1 + x: unbiased and never negative; the divergence of GRPO (arXiv 2402.03300, equation 4).

    -x is clamped to +-input_clip before exp and the value to output_clip after; a clamped token has zero gradient.
    """

    input_clip: float | None = number(20.0, above=0)
    output_clip: float | None = number(None, above=0)

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        difference = ref_log_probs - log_probs
        if self.input_clip is not None:
            difference = difference.clamp(-self.input_clip, self.input_clip)
        value = torch.expm1(difference) - difference
        return value if self.output_clip is None else value.clamp(-self.output_clip, self.output_clip)


@dataclasses.dataclass(frozen=True)
class StraightThrough(Estimator):
    """The value of one estimator with the gradient of k2 (verl's "k1+", "k3+")."""

    estimator: Estimator = K1()

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        gradient = K2().value(log_probs, ref_log_probs)
        return self.estimator.value(log_probs, ref_log_probs).detach() + (gradient - gradient.detach())


@dataclasses.dataclass(frozen=True)
class Reversed(Estimator):
    """An estimator with its arguments exchanged: of KL(anchor || policy), from tokens that the anchor drew."""

    estimator: Estimator = K1()

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return self.estimator.value(ref_log_probs, log_probs)


@dataclasses.dataclass(frozen=True)
class BinaryKL(Estimator):
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)): the divergence between "this token" and "any other", never negative.

    p = pi(token), q = pi_ref(token). 1 - p and 1 - q are kept above 1e-8, so that a certain token has a finite value; a
    log-prob above 0 by more than rounding is no probability and gives NaN.
    """

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        rest_p, rest_q = (-torch.expm1(torch.where(value > 1e-4, float("nan"), value)) for value in (log_probs, ref_log_probs))
        rest_p, rest_q = rest_p.clamp(min=1e-8), rest_q.clamp(min=1e-8)
        return torch.exp(log_probs) * (log_probs - ref_log_probs) + rest_p * (torch.log(rest_p) - torch.log(rest_q))


@dataclasses.dataclass(frozen=True)
class TotalVariation(Estimator):
    """|p - q|: how far this token's probability moved, its share (twice over) of the total variation distance."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return (torch.exp(log_probs) - torch.exp(ref_log_probs)).abs()


@dataclasses.dataclass(frozen=True)
class ProbabilityDifference(Estimator):
    """p - q, signed: a one-sided gate's statistic (prime-rl)."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return torch.exp(log_probs) - torch.exp(ref_log_probs)


@dataclasses.dataclass(frozen=True)
class Detached(Estimator):
    """The estimate as a constant: with an importance weight it has the score-function gradient of the divergence and no other.

    KLPenalty(c, Detached(K1()), importance_weighted=True, anchor="teacher") is on-policy distillation: the reverse divergence as a reward.
    """

    estimator: Estimator = K1()

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return self.estimator.value(log_probs, ref_log_probs).detach()
