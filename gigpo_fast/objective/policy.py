"""The whole objective: L = sum_t w_t [ s(rho_t, A_t) + beta k(log_prob_t, ref_t) - eta H_t ] / D, every symbol a block."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from .aggregation import Aggregation, TokenMean
from .batch import TokenBatch
from .block import Block, declare, write
from .entropy import EntropyTerm
from .penalty import Penalty
from .ratio import Ratio, TokenRatio
from .surrogate import Clip, Surrogate, held_finite
from .weighting import Weighting


@dataclasses.dataclass(frozen=True)
class PolicyObjective(Block):
    """A policy loss as a composition of blocks. Blocks that are None add nothing and cost nothing.

    `divergence` may be a tuple of penalties; `weighting` is a factor of the whole term (for the policy term alone see Weighted).
    """

    ratio: Ratio = TokenRatio()
    surrogate: Surrogate = Clip()
    divergence: Penalty | tuple[Penalty, ...] | None = None
    weighting: Weighting | None = None
    entropy_bonus: EntropyTerm | None = None
    aggregation: Aggregation = TokenMean()

    def __post_init__(self) -> None:
        kinds = {
            "ratio": Ratio,
            "surrogate": Surrogate,
            "divergence": Penalty,
            "weighting": Weighting,
            "entropy_bonus": EntropyTerm,
            "aggregation": Aggregation,
        }
        penalties = self.divergence if isinstance(self.divergence, tuple) else (self.divergence,) if self.divergence is not None else ()
        optional = {"divergence", "weighting", "entropy_bonus"}
        for name, kind in kinds.items():
            for value in penalties if name == "divergence" else (getattr(self, name),):
                if not isinstance(value, kind) and not (value is None and name in optional):
                    shown = "KLPenalty" if kind is Penalty else kind.__name__
                    raise TypeError(
                        f"PolicyObjective: {name} must be a {shown} block, got {value!r}; see gigpo_fast.objective for those there are"
                    )
        numbers: list[float] = []
        blocks = [self.ratio, self.surrogate, *penalties, self.weighting, self.entropy_bonus, self.aggregation]
        structure = write(self, numbers)
        numbers = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        declare(self, blocks, structure=structure, numbers=numbers, penalties=penalties)


class TokenTerms(NamedTuple):
    """What the objective says of each token. Only `loss` carries a gradient."""

    loss: Tensor  # (n,) weighted and divided by the denominator; 0 at untrained tokens
    ratio: Tensor  # (n,) after the clamp
    log_ratio: Tensor  # (n,) what approx_kl is minus the mean of
    clamped: Tensor  # (n,) bool, the log-ratio left its bounds
    dropped: Tensor  # (n,) bool, an infinite log-prob took the token out of the policy term
    ref_kl: Tensor | None  # (n,) the first penalty's estimate


def token_terms(objective: PolicyObjective, batch: TokenBatch) -> TokenTerms:
    """Evaluate the objective on every token; the one place where the blocks meet."""
    # An infinite log-prob (a token that a sampler had filtered out) says nothing about the policy: its term is 0, and it is counted.
    dropped = torch.isinf(batch.log_probs)
    if batch.old_log_probs is not None:
        dropped = dropped | torch.isinf(batch.old_log_probs)
    usable = batch._replace(
        log_probs=torch.where(dropped, 0, batch.log_probs),
        old_log_probs=None if batch.old_log_probs is None else torch.where(dropped, 0, batch.old_log_probs),
    )
    unclamped = objective.ratio.unclamped(usable)
    low, high = objective.ratio.bounds()
    log_ratio = objective.ratio.log_ratio(usable)
    factor = None if objective.weighting is None else objective.weighting.factor(usable).detach()
    of_surrogate = log_ratio if factor is None else held_finite(log_ratio, factor == 0)
    loss = torch.where(dropped, 0, objective.surrogate.loss(usable, of_surrogate))

    ref_kl, apart = None, None  # apart: penalties with an aggregation of their own
    for penalty in objective.penalties:
        value, estimate = penalty.loss(batch, log_ratio, usable)
        ref_kl = estimate if ref_kl is None else ref_kl
        if penalty.aggregation is None:
            loss = loss + value
        else:
            value = value * penalty.token_weights(batch, objective.aggregation)
            apart = value if apart is None else apart + value
    if objective.entropy_bonus is not None:
        loss = loss + objective.entropy_bonus.loss(batch)
    if factor is not None:
        loss, apart = loss * factor, None if apart is None else apart * factor
    loss = loss * batch.token_weights
    if apart is not None:
        loss = loss + apart
    loss = with_nan(loss, batch.log_probs, batch.advantages, batch.old_log_probs)
    if batch.mask is not None:
        loss = torch.where(batch.mask, loss, 0)
    with torch.no_grad():
        clamped = (unclamped < low) | (unclamped > high)
        return TokenTerms(
            loss,
            torch.exp(log_ratio.detach()),
            objective.ratio.token_log_ratio(usable).detach(),
            clamped,
            dropped,
            None if ref_kl is None else ref_kl.detach(),
        )


def with_nan(loss: Tensor, log_probs: Tensor, *given: Tensor | None) -> Tensor:
    """(n,) `loss`, and NaN with a gradient of NaN wherever it, the log-prob or what was given is NaN.

    A comparison hides NaN, and a constant slope (k1, a hinge) has a finite gradient where the value is NaN: so a broken batch would pass a
    guard on the norm of the gradient.
    """
    broken = torch.isnan(loss.detach()) | torch.isnan(log_probs.detach())
    for value in given:
        if value is not None:
            broken = broken | torch.isnan(value)
    nothing = torch.zeros_like(loss, requires_grad=False)
    return loss + torch.where(broken, log_probs, 0) * nothing.masked_fill(broken, float("nan"))
