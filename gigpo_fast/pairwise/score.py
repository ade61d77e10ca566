"""The score of one response: its log-prob against named anchors, per token if wanted, through the derivative f' of a divergence."""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import checks
from ..settings import Settings


class Transform(Settings):
    """Base of what may be done to a log-ratio d = log u before two responses are compared: mostly f'(u) of a divergence."""

    def value(self, d: Tensor) -> Tensor:
        """The transformed d, elementwise and increasing."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ForwardKL(Transform):
    """-exp(-d) = f'(u), u = exp(d), of the forward KL divergence (f-DPO, arXiv 2309.16240, table 1). The reverse KL's is d itself."""

    def value(self, d: Tensor) -> Tensor:
        return -torch.exp(-d)


@dataclasses.dataclass(frozen=True)
class JensenShannon(Transform):
    """log(2 u / (1 + u)) = log 2 + log sigma(d), of the Jensen-Shannon divergence (f-DPO, arXiv 2309.16240, table 1)."""

    def value(self, d: Tensor) -> Tensor:
        return math.log(2) + logsigmoid(d)


@dataclasses.dataclass(frozen=True)
class AlphaDivergence(Transform):
    """(1 - u^-alpha) / alpha, of the alpha divergence (f-DPO, arXiv 2309.16240, table 1).

    Of a mean log-prob it is AlphaPO's reward (arXiv 2501.03884).
    alpha -> 0 is the reverse KL (d itself), alpha = 1 the forward KL up to a constant.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.alpha == 0:
            raise ValueError("AlphaDivergence: alpha must not be 0, got 0; leave the transform out: that is the reverse KL")

    def value(self, d: Tensor) -> Tensor:
        return -torch.expm1(-self.alpha * d) / self.alpha


@dataclasses.dataclass(frozen=True)
class ReverseKL(Transform):
    """log u + 1, of the reverse KL divergence: d itself up to a constant, which cancels between the two responses of a pair."""

    def value(self, d: Tensor) -> Tensor:
        return d + 1


@dataclasses.dataclass(frozen=True)
class TotalVariation(Transform):
    """sign(d) / 2, of the total variation distance. It has no gradient, so it is for `pseudo_rewards` and not for a score."""

    def value(self, d: Tensor) -> Tensor:
        return torch.sign(d) / 2


@dataclasses.dataclass(frozen=True)
class ChiSquare(Transform):
    """1 - u^-2, of the chi-square divergence of the target from the policy."""

    def value(self, d: Tensor) -> Tensor:
        return -torch.expm1(-2 * d)


@dataclasses.dataclass(frozen=True)
class ReverseChiSquare(Transform):
    """2 (u - 1), of the chi-square divergence of the policy from the target."""

    def value(self, d: Tensor) -> Tensor:
        return 2 * torch.expm1(d)


@dataclasses.dataclass(frozen=True)
class LogOdds(Transform):
    """log(p / (1 - p)) of p = exp(d): ORPO compares the odds of mean token log-probs (arXiv 2403.07691, equation 4).

    A response without tokens has p = 1 and infinite odds: leave its pairs out with a weight of 0.
    """

    def value(self, d: Tensor) -> Tensor:
        near = d > -math.log(2)  # 1 - exp(d) keeps its digits by expm1 near 0, by log1p far from it
        rest = torch.where(near, torch.log(-torch.expm1(torch.where(near, d, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, d))))
        return d - rest


@dataclasses.dataclass(frozen=True)
class Score(Settings):
    """transform(S - reference * S_ref - previous * S_previous), S the sequence's log-prob; with `per_token` divided by its length first.

    reference = 1 is the implicit reward of DPO, 0 needs no reference model (SimPO, CPL, ORPO). INPO takes reference = r and
    previous = 1 - r. A response without tokens has the score of d = 0.
    """

    reference: float = 1.0
    previous: float = 0.0
    per_token: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.transform is not None and not isinstance(self.transform, Transform):
            raise TypeError(
                f"Score: transform must be a Transform or None, got {self.transform!r}; see gigpo_fast.pairwise for those there are"
            )

    def value(self, log_probs: Tensor, ref: Tensor | None, previous: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The score of each response, differentiable in log_probs; all tensors have its shape."""
        d = log_probs
        if ref is not None:
            d = d - self.reference * ref
        if previous is not None:
            d = d - self.previous * previous
        if self.per_token:
            d = d / lengths.clamp(min=1)
        return d if self.transform is None else self.transform.value(d)


def pseudo_rewards(
    log_probs: Tensor,  # (S,) float, log pi of whole responses
    target_log_probs: Tensor,  # (S,) float, log of the normalised target; -inf for what it forbids
    *,
    divergence: Transform,
) -> Tensor:  # (S,) float32, float64 for float64 log-probs
    """-f'(pi / target): the reward whose policy gradient descends the f-divergence between policy and target (f-DPG).

        -divergence.value(log_probs.detach() - target_log_probs)

    The target is explicit: for RLHF log ref + reward / beta - log Z. Carries no gradient; infinite where the divergence is.
    Source: arXiv 2302.08215, theorem 1 and table 1. Use with an unclipped importance-weighted policy gradient: recipe("f_dpg").
    """
    function = "pseudo_rewards"
    checks.tensor(function, "log_probs", log_probs, dtypes=checks.FLOATS, fix="sum them with pairwise.sequence_log_probs")
    shape = tuple(log_probs.shape)
    checks.tensor(
        function, "target_log_probs", target_log_probs, shape=shape, dtypes=checks.FLOATS, device=log_probs.device, fix="one a response"
    )
    if not isinstance(divergence, Transform):
        fix = "take ForwardKL(), ReverseKL(), JensenShannon(), TotalVariation(), ChiSquare() or ReverseChiSquare() of gigpo_fast.pairwise"
        checks.fail(function, "divergence", "a Transform", divergence, fix, error=TypeError)
    dtype = checks.compute_dtype(log_probs.dtype)
    return -divergence.value(log_probs.detach().to(dtype) - target_log_probs.detach().to(dtype))
