"""PPO, what trains with a critic beside it, and mirror descent: advantages come from values that the caller learned."""

from ..objective import (
    AdvantageWeightedNLL,
    EntropyTarget,
    KLPenalty,
    NegativeLogLikelihood,
    NoRatio,
    PolicyObjective,
    RatioGuard,
    TokenRatio,
    Unclipped,
)
from .base import Parts, register
from .common import advantages, clipped, rewards


@register("Proximal Policy Optimization Algorithms (arXiv 1707.06347)")
def ppo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    entropy_coefficient: float = 0.0,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Parts:
    """PPO: the clipped loss with generalised advantages; the value loss is the critic's and not here.

        A = gae_advantages(rewards + reward.kl_rewards(...), values, mask, gamma=1, lam=0.95), usually whitened: advantage.whiten

    Clip 0.2: the paper's table 3. gamma 1 and lam 0.95 are the usual settings for language models (DeepSpeed-Chat, trl, PPO-max).
    Retroformer (reward.return_difference) and SALSA (the log-probs of an averaged reference) are this recipe with another reward or
    reference.
    """
    return Parts(clipped(clip_low, clip_high, dual_clip, entropy=entropy_coefficient), advantages("gae_advantages", gamma=gamma, lam=lam))


@register("Secrets of RLHF in Large Language Models Part I: PPO (arXiv 2307.04964)")
def ppo_max(
    *,
    clip: float = 0.2,
    entropy_coefficient: float = 0.0,
    entropy_target: float = 35.0,
    gamma: float = 1.0,
    lam: float = 0.95,
    reward_clip: float | None = 10.0,
) -> Parts:
    """PPO-max: running reward scaling, the penalty in the reward, GAE, whitened and clipped advantages, and, if wanted, entropy and
    pretraining terms.

        rewards = running_scale(scores, state, clip=10);  A = whiten(gae(rewards + kl_rewards(..., coefficient=0.02)))  clamped to +-0.5
        loss = clipped loss + entropy_coefficient |mean H - 35|;  second: NLL of pretraining text, weighted by the caller

    Numbers: the authors' code (penalty 0.02, advantage clip 0.5, target 35). Its released English script switches on only reward scaling
    and the clip (reward_clip=None, entropy_coefficient=0): these terms are off or on by the same name here.
    """
    objective = clipped(clip, clip)
    if entropy_coefficient:
        objective = PolicyObjective(objective.ratio, objective.surrogate, entropy_bonus=EntropyTarget(entropy_coefficient, entropy_target))
    return Parts(
        objective,
        advantages("gae_advantages", gamma=gamma, lam=lam),
        rewards("running_scale", clip=reward_clip),
        second=PolicyObjective(NoRatio(), NegativeLogLikelihood()),
    )


@register("Dataset Reset Policy Optimization for RLHF (arXiv 2404.08495)")
def dr_po(*, clip: float = 0.2, gamma: float = 1.0, lam: float = 0.95) -> Parts:
    """DR-PO: PPO whose responses continue a prefix copied from the data; the copied tokens are in the advantages but not in the loss.

    Pass mask False at copied tokens to the loss alone. The authors' code whitens rewards (keeping their mean) and advantages, has penalty
    0.05 in the reward, and lets padding count; here padding is masked, which the paper does not discuss.
    """
    return Parts(clipped(clip, clip), advantages("gae_advantages", gamma=gamma, lam=lam))


@register("Text2Grad: Reinforcement Learning from Natural Language Feedback (arXiv 2505.22338)")
def text2grad(*, clip: float = 0.2, gamma: float = 1.0, lam: float = 0.95, threshold: float = 10.0) -> Parts:
    """Text2Grad: PPO on span rewards of +-1 and 0, with the penalty in every token's reward; a batch whose mean ratio exceeds 10 is
    skipped.

        A = whiten(gae_advantages(span scores + kl_rewards, values, mask))

    gamma, lam, clip: the trainer's defaults; the threshold is the code's. Finding the spans in a critique, and the divergence over the
    whole vocabulary that the code uses in the reward, are the caller's.
    """
    objective = clipped(clip, clip)
    return Parts(
        PolicyObjective(objective.ratio, objective.surrogate, weighting=RatioGuard(threshold)),
        advantages("gae_advantages", gamma=gamma, lam=lam),
    )


@register("On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling (arXiv 2311.08290)")
def props(*, clip: float = 0.3) -> Parts:
    """PROPS: the policy that collects data is moved away from what the buffer already has: PPO's clip with A = -1 everywhere.

    Pass advantages of -1 (or -|A| / std) and the target policy's log-probs as old ones. Clip 0.3 and no penalty: the released code, where
    the paper's penalty is commented out; stop when the mean of rho - 1 - log rho exceeds 0.01 (0.1 in continuous control).
    """
    return Parts(clipped(clip, clip))


@register("On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling (arXiv 2311.08290)")
def ros() -> Parts:
    """ROS: the mean ratio, without a clip; advantages of -1, as in the released code (the paper's term is the log-prob)."""
    return Parts(PolicyObjective(TokenRatio(None), Unclipped()))


@register("Mirror Descent Policy Optimization (arXiv 2005.09814)")
def mdpo(*, step_size: float = 1.0, gamma: float = 0.99, lam: float = 0.95) -> Parts:
    """MDPO, on-policy: -rho A + KL(pi || pi_old) / step_size, several steps a batch.

    The authors' step size falls from 1 + 1 / K to 2 / K over K updates: objective.with_value(objective, "divergence.coefficient", 1 / t_k).
    They take the divergence over the whole vocabulary; here it is estimated from the sampled tokens, k3 with the ratio as weight, which has
    the same expectation. Advantages standardised over the batch.
    """
    penalty = KLPenalty(1.0 / step_size, importance_weighted=True, anchor="old")
    return Parts(PolicyObjective(TokenRatio(), Unclipped(), penalty), advantages("gae_advantages", gamma=gamma, lam=lam))


@register("Mirror Descent Policy Optimization (arXiv 2005.09814)")
def mdpo_closed(*, temperature: float = 1.0, maximum: float | None = None) -> Parts:
    """MDPO, the reverse divergence in closed form: -exp(A / temperature) log_prob, as in the authors' code (temperature 1, no bound)."""
    return Parts(PolicyObjective(NoRatio(), AdvantageWeightedNLL(temperature, maximum)))
