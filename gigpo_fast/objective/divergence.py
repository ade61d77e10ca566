"""The divergence k(log_prob, ref): how far the policy moved from an anchor policy, estimated from the sampled token.

Estimators are those of http://joschu.net/blog/kl-approx.html with x = log_prob - ref_log_prob:
k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x.
"""

import dataclasses

import torch
from torch import Tensor

from .batch import TokenBatch
from .block import Block


class Estimator(Block):
    """An estimate of the divergence from one sample."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """(n,) estimate, differentiable in log_probs."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class K1(Estimator):
    """x: unbiased, can be negative; its gradient alone has expectation 0."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return log_probs - ref_log_probs


@dataclasses.dataclass(frozen=True)
class AbsoluteKL(Estimator):
    """|x|: the size of the move, whichever way (verl's "abs")."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return (log_probs - ref_log_probs).abs()


@dataclasses.dataclass(frozen=True)
class K2(Estimator):
    """x^2 / 2: biased, its gradient is that of the true divergence on-policy."""

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return 0.5 * (log_probs - ref_log_probs).square()


@dataclasses.dataclass(frozen=True)
class K3(Estimator):
    """exp(-x) - 1 + x: unbiased and never negative; the divergence of GRPO (arXiv 2402.03300, equation 4).

    -x is clamped to +-input_clip before exp and the value to output_clip after; a clamped token has zero gradient.
    """

    input_clip: float | None = 20.0
    output_clip: float | None = None

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
class KLPenalty(Block):
    """coefficient * k(log_prob, ref_log_prob), added to every trained token.

    `importance_weighted` multiplies by the ratio, gradient included (the unbiased estimate of DeepSeek-V3.2, arXiv 2512.02556).
    With `own_mask` the penalty applies only where extras["kl_mask"] (bool) is True; tokens must be trained all the same.
    """

    coefficient: float
    estimator: Estimator = K3()
    importance_weighted: bool = False
    own_mask: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.coefficient, (int, float)) or not self.coefficient >= 0:
            raise ValueError(f"KLPenalty: coefficient must be a number >= 0, got {self.coefficient!r}; GiGPO uses 0.01")
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                f"KLPenalty: estimator must be a divergence estimator such as K3(), got {self.estimator!r}; see gigpo_fast.objective"
            )
        object.__setattr__(self, "coefficient", float(self.coefficient))
        object.__setattr__(self, "reads", ("kl_mask",) if self.own_mask else ())

    def loss(self, batch: TokenBatch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) the penalty and (n,) the bare estimate."""
        estimate = self.estimator.value(batch.log_probs, batch.ref_log_probs)
        if self.own_mask:
            estimate = torch.where(batch.extras["kl_mask"], estimate, 0)
        weighted = torch.exp(log_ratio) * estimate if self.importance_weighted else estimate
        return self.coefficient * weighted, estimate
