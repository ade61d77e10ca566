"""REINFORCE and its baselines."""

from ..objective import NoRatio, PolicyObjective, Reinforce, SequenceMeanTokenSum, TokenMean
from .base import Parts, register
from .common import advantages, clipped


@register("Simple statistical gradient-following algorithms for connectionist reinforcement learning (Williams 1992)")
def reinforce() -> Parts:
    """-A log_prob, a token mean; advantages are the caller's: rewards, returns, anything."""
    return Parts(PolicyObjective(NoRatio(), Reinforce()))


@register("Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs (arXiv 2402.14740)")
def rloo() -> Parts:
    """RLOO: -A times the log-prob of the whole response, the baseline the mean of the others.

    The paper's form: summed over tokens, no ratio, no clip. The penalty belongs into the reward: reward.kl_rewards. TRL's clipped form is
    rloo_clipped.
    """
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum()), advantages("leave_one_out_advantages"))


@register("REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization (arXiv 2501.03262)")
def reinforce_plus_plus(*, clip_low: float = 0.2, clip_high: float = 0.2, gamma: float = 1.0) -> Parts:
    """REINFORCE++: rewards to go with the penalty inside, whitened over the batch, under PPO's clip.

        A = reinforce_plus_plus_advantages(score at the last token + reward.kl_rewards(...), mask)

    gamma 1 and clip 0.2 are OpenRLHF's defaults.
    """
    return Parts(clipped(clip_low, clip_high), advantages("reinforce_plus_plus_advantages", gamma=gamma))


@register("REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization (arXiv 2501.03262)")
def reinforce_plus_plus_baseline(*, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.0) -> Parts:
    """REINFORCE++-baseline: the group's mean as baseline, then whitened over the tokens of the batch. The paper adds a k2 penalty in the
    loss.
    """
    from ..objective import K2

    found = advantages("reinforce_plus_plus_baseline_advantages")
    return Parts(clipped(clip_low, clip_high, kl=kl_coefficient, estimator=K2()), found)


@register("On-Policy RL with Optimal Reward Baseline (arXiv 2505.23585)")
def opo() -> Parts:
    """OPO: exactly on-policy, no clip, no penalty; the baseline is the group's mean weighted by length."""
    return Parts(PolicyObjective(NoRatio(), Reinforce()), advantages("opo_advantages"))


@register("GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning (arXiv 2504.02546)")
def gpg(*, normaliser: float = 1.0) -> Parts:
    """GPG: -A log_prob, A = alpha (score - group mean) / F, alpha the share of groups that teach something inverted. F 1 as in verl."""
    return Parts(PolicyObjective(NoRatio(), Reinforce()), advantages("gpg_advantages", normaliser=normaliser))


@register("ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning LLMs (arXiv 2310.10505)")
def remax(*, clip: float | None = None) -> Parts:
    """ReMax: the reward of the greedy response is the baseline. verl runs it under PPO's clip: clip=0.2."""
    found = advantages("remax_advantages")
    if clip is not None:
        return Parts(clipped(clip, clip), found)
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=TokenMean()), found)


@register("Nash Learning from Human Feedback (arXiv 2312.00886)")
def nash_md() -> Parts:
    """Nash-MD: policy gradient on the probability of being preferred to a response of a mixture of policy and reference.

        A = preference - 1/2 + reward.kl_rewards(log_probs, ref_log_probs, mask, coefficient=0.1)        # per token
        loss = mean over responses of the sum of -A log_prob

    Mixture 0.5 and coefficient 0.1: TRL's defaults; the mixture sampler is the caller's. TRL's loss is this one, value and gradient.
    """
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum()))


@register("Accelerating Nash Learning from Human Feedback via Mirror Prox (arXiv 2505.19731)")
def nash_mp() -> Parts:
    """Nash-MP: two proximal policy-gradient steps an iteration, each with penalties to the reference and to the previous iterate.

        A = preference - b - beta (S - S_ref) - (beta / eta) (S - S_previous);  loss = mean over responses of -A S

    The second step's opponent is where the first one ended, its anchor still where it began. Assumed (the paper prints no numbers that
    could be confirmed): baseline b 1/2, beta near 0.1.
    """
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum()))
