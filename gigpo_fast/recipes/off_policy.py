"""Corrections for data that another policy, or another engine, sampled."""

from ..objective import (
    DPPOKL,
    DPPOTV,
    DRO,
    TOPR,
    Kimi15,
    KLPenalty,
    OffPolicySequenceMask,
    PolicyObjective,
    RolloutCorrection,
    SecondMoment,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceProductRatio,
    SequenceSum,
    TokenLevel,
    TokenRatio,
    Weighted,
)
from .base import Parts, register
from .common import clipped, group_relative

_ENGINES = "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (Yao et al. 2025)"


def _corrected(correction: RolloutCorrection, low: float, high: float, dual: float | None = None) -> Parts:
    objective = clipped(low, high, dual)
    return Parts(PolicyObjective(objective.ratio, Weighted(objective.surrogate, correction)), group_relative())


@register(_ENGINES)
def tis(*, clip_low: float = 0.2, clip_high: float = 0.2, maximum: float = 2.0) -> Parts:
    """TIS: grpo's loss times min(pi_old / pi_rollout, maximum) of the token, without gradient; reads extras rollout_log_probs.

    Truncation at 2 as in the note and in slime and verl. The weight is the policy term's alone.
    """
    return _corrected(RolloutCorrection(TokenLevel(), None, maximum), clip_low, clip_high)


@register(_ENGINES)
def tis_sequence(*, clip_low: float = 0.2, clip_high: float = 0.2, maximum: float = 2.0) -> Parts:
    """TIS with the ratio of whole responses, which is unbiased where the token's is not (verl's rollout_is "sequence", threshold 2)."""
    return _corrected(RolloutCorrection(SequenceSum(), None, maximum), clip_low, clip_high)


@register("Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model (arXiv 2510.18855)")
def icepop(*, clip_low: float = 0.2, clip_high: float = 0.2, low: float = 0.5, high: float = 5.0) -> Parts:
    """IcePop: as tis, but a token whose weight leaves [low, high] is dropped instead of truncated. 0.5 and 5: the paper's bounds."""
    return _corrected(RolloutCorrection(TokenLevel(), low, high, truncate=False), clip_low, clip_high)


@register("Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model (arXiv 2510.18855)")
def icepop_sequence(*, clip_low: float = 0.2, clip_high: float = 0.2, low: float = 0.99, high: float = 1.001) -> Parts:
    """IcePop of whole responses by the geometric mean of their weights, as verl and slime offer it. Assumed: bounds 0.99 and 1.001."""
    return _corrected(RolloutCorrection(SequenceMean(), low, high, truncate=False), clip_low, clip_high)


@register("DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models (arXiv 2512.02556)")
def deepseek_v32(*, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.001, threshold: float = 0.1) -> Parts:
    """DeepSeek-V3.2's GRPO: the penalty carries the importance ratio (unbiased), and bad actions of responses that drifted are masked.

    k3 times the ratio, with its gradient; the mask drops A < 0 where the mean of rollout - policy log-probs exceeds the threshold. Averages
    and group deviation are grpo_paper's. The paper prints neither coefficient nor threshold: both are assumed.
    """
    objective = clipped(clip_low, clip_high)
    return Parts(
        PolicyObjective(
            objective.ratio,
            Weighted(objective.surrogate, OffPolicySequenceMask(threshold)),
            KLPenalty(kl_coefficient, importance_weighted=True) if kl_coefficient else None,
            aggregation=SequenceMeanTokenMean(),
        ),
        group_relative(),
    )


@register("Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs? (arXiv 2510.01161)")
def m2po(*, threshold: float = 0.04) -> Parts:
    """M2PO: no clip; the tokens of largest squared log-ratio are dropped until the mean of the rest is at most 0.04, the paper's value."""
    from ..objective import Unclipped

    return Parts(PolicyObjective(TokenRatio(), Weighted(Unclipped(), SecondMoment(threshold))), group_relative())


@register("Rethinking the Trust Region in LLM Reinforcement Learning (arXiv 2602.04879)")
def dppo_tv(*, low: float = 0.2, high: float = 0.2, maximum: float | None = 20.0, score_function: bool = True) -> Parts:
    """DPPO: a token is dropped where its probability moved too far (total variation), not where its ratio did.

    -sg(min(rho, 20)) A log_prob as in verl; score_function=False is -rho A, as in prime-rl.
    """
    return Parts(PolicyObjective(TokenRatio(), DPPOTV(low, high, maximum, score_function)), group_relative())


@register("Rethinking the Trust Region in LLM Reinforcement Learning (arXiv 2602.04879)")
def dppo_kl(*, low: float = 0.05, high: float = 0.05, maximum: float | None = 20.0, score_function: bool = True) -> Parts:
    """DPPO by the binary divergence of the sampled token against all others; otherwise dppo_tv."""
    return Parts(PolicyObjective(TokenRatio(), DPPOKL(low, high, maximum, score_function)), group_relative())


@register("Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs (arXiv 2503.14286)")
def topr(*, positive_weight: float = 1.0, negative_weight: float = 1.0, low: float = 0.0, high: float = 1.0) -> Parts:
    """TOPR: good responses at full weight, bad ones by the ratio of the whole response, truncated into [0, 1] (the paper's canonical
    choice).
    """
    surrogate = TOPR(positive_weight, negative_weight, low, high)
    return Parts(PolicyObjective(SequenceProductRatio(), surrogate, aggregation=SequenceMeanTokenMean()), group_relative(scale=None))


@register("Kimi k1.5: Scaling Reinforcement Learning with LLMs (arXiv 2501.12599)")
def kimi15(*, tau: float = 0.1) -> Parts:
    """Kimi k1.5: -A log_prob + tau / 2 (log_prob - old)^2, A the score minus the group's mean.

    Per token, and tau 0.1, as in ROLL; the paper squares the log-ratio of the whole response and prints no tau.
    """
    return Parts(PolicyObjective(TokenRatio(), Kimi15(tau)), group_relative(scale=None))


@register("Offline Regularised Reinforcement Learning for Large Language Models Alignment (arXiv 2405.19107)")
def dro(*, beta: float = 1.0) -> Parts:
    """DRO: -A log_prob + beta / 2 (log_prob - old)^2, A the reward minus the caller's learned value, as in verl. beta 1 is assumed."""
    return Parts(PolicyObjective(TokenRatio(), DRO(beta)))
