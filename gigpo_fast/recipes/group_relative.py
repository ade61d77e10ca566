"""GRPO, GiGPO and what changes their advantages, their averages or one coefficient of their loss."""

from ..objective import (
    K3,
    Clip,
    EntropyBonus,
    KLPenalty,
    MixedGroups,
    NoSurrogate,
    Piecewise,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceMeanTokenSumNorm,
    SurrogateSum,
    TokenRatio,
)
from .base import Parts, register
from .common import advantages, clipped, group_centred, group_relative, rewards


@register("DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (arXiv 2402.03300)")
def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_coefficient: float = 0.0,
    entropy_coefficient: float = 0.0,
) -> Parts:
    """Group Relative Policy Optimization, as trainers run it today.

        A = (score - group mean) / group std
        loss = token mean of max(-rho A, -clip(rho, 1 - clip_low, 1 + clip_high) A) + kl_coefficient k3 - entropy_coefficient H

    Clip 0.2 is PPO's; the token mean and no penalty are the defaults of TRL and verl. The paper's own form is grpo_paper.
    """
    return Parts(clipped(clip_low, clip_high, dual_clip, kl=kl_coefficient, entropy=entropy_coefficient), group_relative())


@register("DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (arXiv 2402.03300)")
def grpo_paper(*, clip: float = 0.2, kl_coefficient: float = 0.04) -> Parts:
    """GRPO by the paper's equation 3: the mean over a response's tokens, then over responses, and k3 to the reference with 0.04 (section
    4.2).

    Assumed: clip 0.2, which the paper does not print.
    """
    return Parts(clipped(clip, clip, kl=kl_coefficient, aggregation=SequenceMeanTokenMean()), group_relative())


@register("Understanding R1-Zero-Like Training: A Critical Perspective (arXiv 2503.20783)")
def dr_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, length: float = 3000.0, kl_coefficient: float = 0.0) -> Parts:
    """Dr. GRPO: neither the group's standard deviation nor a response's length divides anything.

        A = score - group mean;  loss = sum over tokens of the clipped loss / length, mean over responses

    `length` is the constant of the paper's code, its maximum response length (3000 tokens); a trainer passes its own. No penalty (section
    3).
    """
    return Parts(clipped(clip_low, clip_high, kl=kl_coefficient, aggregation=SequenceMeanTokenSumNorm(length)), group_centred())


@register("DAPO: An Open-Source LLM Reinforcement Learning System at Scale (arXiv 2503.14476)")
def dapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    drop_degenerate: bool = False,
    max_length: int = 20480,
    buffer: int = 4096,
) -> Parts:
    """DAPO: the upper bound is higher, every token counts the same, no penalty, overlong responses are punished softly.

    Clip 0.2 / 0.28, maximum 20480 with a buffer of 4096: section 4.1. Dynamic sampling is the sampler's part; `drop_degenerate` leaves out
    of the loss what it would not have kept (reads extras group_spread) and does not draw anew. verl adds dual_clip 10 in its DAPO scripts.
    """
    objective = clipped(clip_low, clip_high, dual_clip)
    if drop_degenerate:
        objective = PolicyObjective(objective.ratio, objective.surrogate, weighting=MixedGroups())
    return Parts(objective, group_relative(), rewards("soft_overlong", max_length=max_length, buffer=buffer))


@register("Group-in-Group Policy Optimization for LLM Agent Training (arXiv 2505.10978)")
def gigpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_coefficient: float = 0.0,
    entropy_coefficient: float = 0.0,
    gamma: float = 0.95,
    step_weight: float = 1.0,
    scale: str | None = None,
) -> Parts:
    """GiGPO: A = episode advantage + step_weight * step advantage (equation 8), then grpo's loss (equation 9).

    gamma 0.95 and step_weight 1: appendix E.1, whose runs also have kl_coefficient 0.01 (0.001 in search); here it is off unless asked for,
    as in grpo. `scale`: the authors' scripts take None for WebShop and "std" for ALFWorld and search.
    """
    objective = clipped(clip_low, clip_high, dual_clip, kl=kl_coefficient, entropy=entropy_coefficient)
    return Parts(objective, advantages("gigpo_advantages", gamma=gamma, step_weight=step_weight, scale=scale))


@register("Hierarchy-of-Groups Policy Optimization for Long-Horizon Agentic Tasks (arXiv 2602.22817)")
def hgpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    gamma: float = 0.95,
    history: int = 2,
    length_exponent: float = 1.0,
) -> Parts:
    """HGPO: a step is compared in nested groups of 1 to history + 1 equal last states, the longer contexts weighing more.

    history 2 and exponent 1 are the authors' code; gamma, clip and penalty those of GiGPO's scripts, which their recipe extends.
    """
    found = advantages("hgpo_advantages", gamma=gamma, history=history, length_exponent=length_exponent)
    return Parts(clipped(clip_low, clip_high, kl=kl_coefficient), found)


@register("Dr. MAS: Stable Reinforcement Learning for Multi-Agent LLM Systems (arXiv 2602.08847)")
def dr_mas(*, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.0) -> Parts:
    """Dr. MAS: GRPO whose statistics are each agent's own.

    Pass group=advantage.combined_labels(task, agent): every row of an agent counts in its task's statistics.
    """
    from ..advantage import VERL

    return Parts(clipped(clip_low, clip_high, kl=kl_coefficient), group_relative(statistics=VERL))


@register("SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization (arXiv 2505.12346)")
def seed_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, length: float = 3000.0) -> Parts:
    """SEED-GRPO: Dr. GRPO whose advantages shrink where a prompt's answers disagree.

        SE = advantage.semantic_entropy(cluster, group, log_probs=...)
        A = (score - group mean) * advantage.uncertainty_weights(SE, group size, alpha=0.02)

    alpha 0.02, the linear decay and the constant length are sections 4.1 and 3.2 (maximum 3000 tokens). The decay's display is not printed;
    what is assumed is said at uncertainty_weights. The advantages here are the first factor.
    """
    return Parts(clipped(clip_low, clip_high, aggregation=SequenceMeanTokenSumNorm(length)), group_centred())


@register("OThink-MR1: Stimulating Multimodal Generalized Reasoning Capabilities via Dynamic Reinforcement Learning (arXiv 2503.16081)")
def grpo_d(*, clip: float = 0.2, least: float = 0.0, most: float = 0.02, explore: int = 30, steps: int = 100) -> Parts:
    """GRPO-D: the penalty's coefficient falls from the middle of its range to `least` at step `explore`, then rises to `most` at `steps`.

    The equation is followed (the text says that it starts small). 0 to 0.02 is the paper's range for geometry, 0.04 to 0.1 for counting;
    explore is 0.3 of the steps. Take the loss of a step as objective.Scheduled(recipe.objective, recipe.schedules)(step).
    """
    if not 0 < explore < steps or not 0 <= least < most:
        got = f"explore={explore!r}, steps={steps!r}, least={least!r}, most={most!r}"
        raise ValueError(f"recipe: 'grpo_d' takes 0 < explore < steps and 0 <= least < most, got {got}")
    middle = (least + most) / 2
    schedule = Piecewise(((0, middle), (explore, least), (steps, most)))
    objective = clipped(clip, clip, kl=middle, aggregation=SequenceMeanTokenMean())
    return Parts(objective, group_relative(), schedules={"divergence.coefficient": schedule})


@register("Reinforcement Learning for Reasoning in Large Language Models with One Training Example (arXiv 2504.20571)")
def one_shot_rlvr(*, policy: float = 1.0, clip: float = 0.2, kl_coefficient: float = 0.001, entropy_coefficient: float = 0.001) -> Parts:
    """One-shot RLVR: GRPO with k3 and an entropy bonus; `policy` 0 leaves penalty and entropy alone (the paper's ablation).

    Both coefficients 0.001: section 3.1, and the authors' verl configuration, whose k3 is clamped at 10.
    """
    from ..advantage import VERL

    surrogate = Clip(clip, clip) if policy == 1 else SurrogateSum((Clip(clip, clip),), (policy,)) if policy else NoSurrogate()
    objective = PolicyObjective(
        TokenRatio(),
        surrogate,
        KLPenalty(kl_coefficient, K3(20.0, 10.0)) if kl_coefficient else None,
        entropy_bonus=EntropyBonus(entropy_coefficient) if entropy_coefficient else None,
    )
    return Parts(objective, group_relative(statistics=VERL))


@register("Maximum Likelihood Reinforcement Learning (arXiv 2602.02710)")
def maxrl(*, clip_low: float = 0.2, clip_high: float = 0.2) -> Parts:
    """MaxRL: A = (score - group mean) / group mean, with grpo's loss. Scores are non-negative, 0 or 1 as a rule."""
    return Parts(clipped(clip_low, clip_high), advantages("maxrl_advantages"))


@register("Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models (arXiv 2508.10751)")
def pass_at_k(*, clip_low: float = 0.2, clip_high: float = 0.2, k: int = 4) -> Parts:
    """Pass@k training: a response gets the mean advantage of the k-subsets that it is in, exactly. k 4 as in the paper's main runs."""
    return Parts(clipped(clip_low, clip_high), advantages("pass_at_k_advantages", k=k))


@register("GDPO: Group Reward-Decoupled Normalization Policy Optimization for Multi-Reward RL Optimization (arXiv 2601.05242)")
def gdpo(*, clip_low: float = 0.2, clip_high: float = 0.2) -> Parts:
    """GDPO: every reward is normalised in its group before they are summed, and the sum is whitened over the batch."""
    return Parts(clipped(clip_low, clip_high), advantages("gdpo_advantages"))


@register("Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach (arXiv 2503.21819)")
def multi_objective_grpo(*, clip: float = 0.2, kl_coefficient: float = 0.04, normalise_first: bool = False) -> Parts:
    """GRPO of a weighted sum of rewards: reward.weighted_sum(rewards, weights=...) and then the group's statistics.

    `normalise_first` normalises each reward before the sum (DanceGRPO's video rewards, GDPO's first step). The paper's weights are not
    known: they default to equal ones. Assumed: the rest is grpo_paper.
    """
    objective = clipped(clip, clip, kl=kl_coefficient, aggregation=SequenceMeanTokenMean())
    if normalise_first:
        return Parts(objective, advantages("normalised_sum"))
    return Parts(objective, group_relative(), rewards("weighted_sum"))
