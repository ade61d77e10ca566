"""The divergence from a reference policy as part of the reward, and the coefficient that follows a target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments
from ..advantage.layout import token_values
from ..objective import K1
from ..objective.divergence import Estimator


def kl_rewards(
    log_probs: Tensor,  # (B, T) or (N,) float, of the sampled tokens under the policy that sampled them
    ref_log_probs: Tensor,  # the same shape, float
    mask: Tensor,  # the same shape, bool
    *,
    coefficient: float,
    estimator: Estimator = K1(),  # noqa: B008 - a frozen value
) -> Tensor:  # the same shape, float32, float64 for float64 log-probs; 0 where masked
    """-coefficient times the estimated divergence, at every token: to be added to the other rewards.

    The same, slowly: `-coefficient * (log_probs - ref_log_probs) * mask`

    The estimators are those of the loss (gigpo_fast.objective). With the teacher as reference and coefficient 1 this is the
    advantage of on-policy distillation. Carries no gradient. Where values are checked raises for log-probs that are not finite.
    Source: InstructGPT (arXiv 2203.02155), Eq. 2; k1 in the reward estimates the gradient of the divergence without bias, k2 and k3
    do not.
    """
    function = "kl_rewards"
    factor = checks.number(function, "coefficient", coefficient, fix="0.05 is usual")
    if not isinstance(estimator, Estimator):
        fix = "see gigpo_fast.objective: K1(), K2(), K3()"
        checks.fail(function, "estimator", "a divergence estimator", estimator, fix, error=TypeError)
    checks.mask(function, mask)
    policy, reference = (
        token_values(function, name, value, mask) for name, value in (("log_probs", log_probs), ("ref_log_probs", ref_log_probs))
    )
    dtype = arguments.result_dtype(log_probs, ref_log_probs)
    return torch.where(mask, -factor * estimator.value(policy, reference), 0.0).to(dtype)


def score_at_last_token(
    scores: Tensor,  # (B,) float, int or bool for (B, T) tokens: score of each row
    mask: Tensor,  # (B, T) bool
) -> Tensor:  # (B, T) float32, float64 for float64 scores; 0 elsewhere
    """The score of a response as the reward of its last trained token.

    The same, slowly: `rewards[i, mask[i].nonzero().max()] = scores[i]`

    A row without a trained token has no place for its score. Scores of rows that are steps or whole trajectories need no tokens:
    see `advantage.discounted_returns`.
    """
    function = "score_at_last_token"
    checks.mask(function, mask)
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a response")
    values = arguments.scores(function, "scores", scores, mask.any(1))
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last, values.unsqueeze(1), 0.0).to(arguments.result_dtype(scores))


@dataclass(frozen=True, kw_only=True)
class AdaptiveCoefficient:
    """A coefficient that grows while the divergence is above its target and shrinks while it is below.

    target: the divergence to hold, in the unit in which it is measured (a mean per token, or the sum of a response).
    horizon: how many samples the coefficient takes to follow an error of one.
    limit: errors count up to this relative size.
    Source: Fine-Tuning Language Models from Human Preferences (arXiv 1909.08593), section 2.2; verl's adaptive controller.
    """

    target: float = 0.1
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        for name, fix in (("target", "6.0 per response is usual"), ("horizon", "10000 is usual"), ("limit", "0.2 is usual")):
            checks.number("AdaptiveCoefficient", name, getattr(self, name), above=0.0, fix=fix)

    def next(self, coefficient: float, divergence: float, samples: int) -> float:
        """The coefficient after a batch of `samples` with this measured divergence."""
        error = min(max(divergence / self.target - 1.0, -self.limit), self.limit)
        return coefficient * (1.0 + error * samples / self.horizon)
