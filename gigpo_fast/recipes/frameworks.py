"""What training frameworks run by default, or by a name of their own, where it is no other recipe."""

from ..objective import (
    CISPO,
    DPPOTV,
    K2,
    AveragedRatio,
    KLPenalty,
    NegativeLogLikelihood,
    NoRatio,
    OffPolicySequenceMask,
    PolicyObjective,
    Reinforce,
    Rejection,
    RolloutRatio,
    SequenceMeanTokenMean,
    SurrogateSum,
    TokenRatio,
    TotalVariation,
    Unclipped,
    Weighted,
)
from .base import Parts, register
from .common import advantages, clipped, group_centred, group_relative

_PRIME = "prime-rl: Async RL Training at Scale (Prime Intellect et al. 2025)"
_TRINITY = "Trinity-RFT: A General-Purpose and Unified Framework for Reinforcement Fine-Tuning of Large Language Models (arXiv 2505.17826)"


def _prime(low: float, high: float, kl_coefficient: float) -> PolicyObjective:
    penalty = KLPenalty(2 * kl_coefficient, K2(), anchor="old") if kl_coefficient else None
    return PolicyObjective(TokenRatio(None), DPPOTV(low, high, maximum=None, score_function=False), penalty)


@register(_PRIME)
def prime_rl(*, low: float = 0.2, high: float = 0.2, kl_coefficient: float = 1e-3) -> Parts:
    """prime-rl's default: -rho A without a clip, a token is dropped where its probability moved too far; all keep (log rho)^2.

        dropped: p - q > high where A > 0, p - q < -low elsewhere (A = 0 too);  loss = -kept rho A + kl_coefficient (log_prob - old)^2

    q is the sampling engine's probability: pass its log-probs as old_log_probs. The denominator is the tokens of the whole batch. Bounds
    0.2 and coefficient 1e-3 (kl_tau): its trainer's configuration.
    """
    return Parts(_prime(low, high, kl_coefficient), group_centred())


@register(_PRIME)
def prime_rl_tv(*, threshold: float = 0.1, kl_coefficient: float = 1e-3) -> Parts:
    """prime-rl's "ipo" form: as prime_rl, a token is dropped where |p - q| > threshold, whatever its advantage.

    Reads extras rollout_log_probs, the sampling engine's, and no old policy. 0.1: its trainer's configuration.
    """
    gate = Rejection(TotalVariation(), high=threshold, current=True)
    penalty = KLPenalty(2 * kl_coefficient, K2(), anchor="rollout") if kl_coefficient else None
    return Parts(PolicyObjective(RolloutRatio(None), Weighted(Unclipped(), gate), penalty), group_centred())


@register(_PRIME)
def echo(*, low: float = 0.2, high: float = 0.2, kl_coefficient: float = 1e-3, coefficient: float = 1.0) -> Parts:
    """prime-rl's echo: prime_rl, and the likelihood of what the environment answered, with a denominator of its own.

    second: the same rows with the mask on tool and user tokens after the first response; its token mean is over them alone, so of parts
    of a batch pass their count as its denominator, not the policy's. Assumed: coefficient (alpha) 1, which is set per run.
    """
    second = PolicyObjective(NoRatio(), SurrogateSum((NegativeLogLikelihood(),), (coefficient,)))
    return Parts(_prime(low, high, kl_coefficient), group_centred(), second=second)


@register("DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models (arXiv 2512.02556)")
def opsm(*, clip_low: float = 0.2, clip_high: float = 0.2, threshold: float = 1e-4) -> Parts:
    """slime's off-policy sequence mask: grpo's loss, bad tokens (A < 0) of responses with mean(old - log_prob) > threshold dropped.

    DeepSeek-V3.2's mask by the old policy instead of the sampling engine. Mean over a response's tokens, then over responses; 0.2 and 1e-4
    are slime's defaults.
    """
    objective = clipped(clip_low, clip_high)
    masked = Weighted(objective.surrogate, OffPolicySequenceMask(threshold, old=True))
    return Parts(PolicyObjective(objective.ratio, masked, aggregation=SequenceMeanTokenMean()), group_relative())


@register("TRL: Transformers Reinforcement Learning (von Werra et al. 2020)")
def bnpo(*, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.0) -> Parts:
    """TRL's loss type "bnpo": grpo with the mean over the tokens of the local batch.

    What differs from dapo's average is the denominator: leave it None in every micro-batch, and each counts its own tokens, so that the
    loss depends on how a batch is split. 0.2 and no penalty are TRL's defaults.
    """
    from ..advantage import TRL

    return Parts(clipped(clip_low, clip_high, kl=kl_coefficient), group_relative(statistics=TRL))


@register("rLLM: A Framework for Post-Training Language Agents (Tan et al. 2025)")
def prpo(*, clip_low: float = 0.2, clip_high: float = 0.2) -> Parts:
    """rLLM's prpo: scores against the mean and the population deviation of the whole batch of a role, not of a task.

    Pass the role of each row (all 0 for one) as `group`. Clip 0.2 is verl's, below rLLM.
    """
    from ..advantage import GroupStatistics

    return Parts(clipped(clip_low, clip_high), group_relative(statistics=GroupStatistics(count="row", ddof=0)))


@register("Asymmetric REINFORCE for off-Policy Reinforcement Learning: Balancing positive and negative rewards (arXiv 2506.20520)")
def asymre(*, shift: float = -0.1) -> Parts:
    """AsymRE: -A log_prob without a ratio, A = score - (group mean + shift): below the mean, so that successes weigh more than failures.

    -0.1 is Trinity-RFT's default and within the paper's range. A lone score passes as it is, as there.
    """
    return Parts(PolicyObjective(NoRatio(), Reinforce()), _soft(shift=shift))


@register(_TRINITY)
def opmd(*, tau: float = 1.0, temperature: float | None = None) -> Parts:
    """OPMD: -A log_prob / (1 + tau), A = score - group mean, or with `temperature` - the soft maximum temperature log mean exp(score / .).

    No ratio: off-policy by construction. tau 1 and the mean are Trinity-RFT's defaults; a lone score passes as it is, as there.
    """
    surrogate = SurrogateSum((Reinforce(),), (1 / (1 + tau),))
    return Parts(PolicyObjective(NoRatio(), surrogate), _soft(temperature=temperature))


def _soft(**settings):
    from ..advantage import GroupStatistics

    return advantages("soft_baseline_advantages", statistics=GroupStatistics(count="row", singleton="raw"), **settings)


@register("ART: Agent Reinforcement Trainer (Hilton et al. 2025)")
def art_average(*, low: float = 1.0, high: float = 4.0, geometric: bool = False) -> Parts:
    """ART's importance_sampling_level "average", or with `geometric` "geometric_average": CISPO by a ratio between token and response.

        rho = (rho_token + s) / 2 or sqrt(rho_token s), s = exp(mean log-ratio of the response)
        loss = -sg(clip(rho, 1 - low, 1 + high)) A log_prob

    [0, 5] is ART's interval. Its max_negative_advantage_importance_sampling_weight m bounds the ratio of every token, good ones too:
    high = m - 1. PPO's clip instead: Clip(0.2, 0.2).
    """
    return Parts(PolicyObjective(AveragedRatio(geometric), CISPO(low, high)), group_relative())
