"""GRPO and PPO with a shaped reward: the shaping is the method, the loss is a known one."""

from ..objective import K3, KLPenalty, PolicyObjective, SequenceMeanTokenMean, TokenRatio, Unclipped
from .base import Parts, register
from .common import advantages, clipped, group_relative, rewards


def _trl(kl_coefficient: float, clip: float) -> PolicyObjective:
    return clipped(clip, clip, kl=kl_coefficient, aggregation=SequenceMeanTokenMean())


@register("Think or Not? Selective Reasoning via Reinforcement Learning for Vision-Language Models (arXiv 2505.16854)")
def ton(*, kl_coefficient: float = 0.04) -> Parts:
    """TON: after thought dropout in SFT (the caller's), plain on-policy GRPO: no clip, k3, the mean over tokens, then responses.

    Rewards: the sum of accuracy and format. 0.04 is the trainer's default; deviation + 1e-4 as in TRL.
    """
    from ..advantage import TRL

    objective = PolicyObjective(TokenRatio(None), Unclipped(), KLPenalty(kl_coefficient, K3(None)), aggregation=SequenceMeanTokenMean())
    return Parts(objective, group_relative(statistics=TRL), rewards("weighted_sum"))


@register("Reinforcement Learning for Reasoning in Small LLMs: What Works and What Doesn't (arXiv 2503.16219)")
def open_rs(*, clip: float = 0.2, kl_coefficient: float = 0.04, max_length: int = 3584, clamp: bool = True) -> Parts:
    """Open-RS: a reward for right answers that falls from 1 to 0.5 along half a cosine of their length, for wrong ones from -1 to -0.5.

    Weighted 2 to 1 with the format reward. The authors' code counts characters and does not stop at max_length (clamp=False); here lengths
    are the caller's and clamped. 3584 is their longest completion (the code's default is 1000); clip and 0.04 are TRL's defaults then.
    """
    from ..advantage import TRL

    return Parts(_trl(kl_coefficient, clip), group_relative(statistics=TRL), rewards("cosine_length", max_length=max_length, clamp=clamp))


@register("Walk Before You Run! Concise LLM Reasoning via Reinforcement Learning (arXiv 2505.21178)")
def concise_r(*, clip_low: float = 0.2, clip_high: float = 0.28, entropy_coefficient: float = 0.001) -> Parts:
    """ConciseR, stage 1: GRPO with a higher upper clip, dynamic sampling and a small entropy bonus, a token mean. Assumed: the numbers."""
    return Parts(clipped(clip_low, clip_high, entropy=entropy_coefficient), group_relative())


@register("Walk Before You Run! Concise LLM Reasoning via Reinforcement Learning (arXiv 2505.21178)")
def concise_r_length(*, clip_low: float = 0.2, clip_high: float = 0.28, coefficient: float = 1.0) -> Parts:
    """ConciseR, stage 2: brevity counts only in groups whose answers are all right.

        rewards = gated_bonus(scores, remaining_length(lengths, max_length), all_of_group(correct, group), coefficient=1)

    The gate is the authors' README; the length formula is not printed anywhere and assumed. After the group's deviation has divided,
    the coefficient cancels: every value > 0 gives the same advantages.
    """
    return Parts(clipped(clip_low, clip_high), group_relative(), rewards("gated_bonus", coefficient=coefficient))


@register("PixelThink: Towards Efficient Chain-of-Pixel Reasoning (arXiv 2505.23727)")
def pixelthink(*, clip: float = 0.2, kl_coefficient: float = 5e-3, slope: float = 1 / 500) -> Parts:
    """PixelThink: accuracy times soft_length(lengths, difficulty_budget(difficulty, uncertainty)); GRPO of verl with k3.

    1 / 500 and 5e-3: the authors' code. Uncertainty: reward.top_two_uncertainty.
    """
    from ..advantage import VERL

    return Parts(clipped(clip, clip, kl=kl_coefficient), group_relative(statistics=VERL), rewards("soft_length", slope=slope))


@register("UI-R1: Enhancing Efficient Action Prediction of GUI Agents by Reinforcement Learning (arXiv 2503.21620)")
def ui_r1(*, clip: float = 0.2, kl_coefficient: float = 0.04) -> Parts:
    """UI-R1: the sum of three 0 / 1 rewards (action type, coordinates, format) under TRL's GRPO. Numbers: the authors' configuration."""
    from ..advantage import TRL

    return Parts(_trl(kl_coefficient, clip), group_relative(statistics=TRL), rewards("weighted_sum"))


@register("UI-R1: Enhancing Efficient Action Prediction of GUI Agents by Reinforcement Learning (arXiv 2503.21620)")
def ui_r1_e(*, clip: float = 0.2, kl_coefficient: float = 0.04, slope: float = -0.5, offset: float = 0.5) -> Parts:
    """UI-R1-E: adds DAST's length term, whose budget the group's right answers set (reward.dast_length); slope and offset are the
    trainer's.
    """
    from ..advantage import TRL

    return Parts(_trl(kl_coefficient, clip), group_relative(statistics=TRL), rewards("dast_length", slope=slope, offset=offset))


@register("GUI-R1: A Generalist R1-Style Vision-Language Action Model For GUI Agents (arXiv 2504.10458)")
def gui_r1(*, clip: float = 0.2, kl_coefficient: float = 0.01) -> Parts:
    """GUI-R1: weighted_sum of accuracy and format with weights (0.8, 0.2) under verl's GRPO with k3 0.01: the authors' code."""
    from ..advantage import VERL

    return Parts(clipped(clip, clip, kl=kl_coefficient), group_relative(statistics=VERL), rewards("weighted_sum"))


@register("Vision-R1: Incentivizing Reasoning Capability in Multimodal Large Language Models (arXiv 2503.06749)")
def vision_r1(*, clip: float = 0.2, kl_coefficient: float = 0.01) -> Parts:
    """Vision-R1: reward 1 if format and answer are right and the length is within the stage's cap, else 0; GRPO with k3.

    Clip 0.2 and 0.01: two notes of the paper. Stages: 4096 tokens with groups of 16, then 8192 with 8; assumed: the mean over tokens, then
    responses.
    """
    return Parts(_trl(kl_coefficient, clip), group_relative())


@register("OTC: Optimal Tool Calls via Reinforcement Learning (arXiv 2504.14870)")
def otc(*, clip: float = 0.2, kl_coefficient: float = 0.001, max_calls: int = 4) -> Parts:
    """OTC: correctness times reward.tool_cost(calls, fewest_calls(calls, correct, group)), 1 at the fewest calls that are enough.

    max_calls 4 in the paper's search setting, 3 in ToRL. The fewest calls are those over all epochs: pass `known`. Assumed: 0.001,
    Search-R1's.
    """
    from ..advantage import VERL

    return Parts(clipped(clip, clip, kl=kl_coefficient), group_relative(statistics=VERL), rewards("tool_cost", max_calls=max_calls))


@register("MaxMin-RLHF: Alignment with Diverse Human Preferences (arXiv 2402.08925)")
def maxmin(*, clip: float = 0.2, temperature: float | None = None) -> Parts:
    """MaxMin-RLHF: the rewards of the population whose mean over the batch is lowest; a temperature mixes them softly, which the paper does
    not.
    """
    return Parts(
        clipped(clip, clip), advantages("gae_advantages", gamma=1.0, lam=0.95), rewards("worst_population", temperature=temperature)
    )


@register("Reward Model Ensembles Help Mitigate Overoptimization (arXiv 2310.02743)")
def ensemble(*, clip: float = 0.2, coefficient: float = 0.1, ddof: int = 1) -> Parts:
    """UWO: PPO on the mean of K reward models minus coefficient times their variance; WCO and the mean: reward.ensemble_worst,
    ensemble_mean.

    0.1 and ddof 1: the authors' PPO configuration (their best-of-n uses ddof 0).
    """
    found = rewards("ensemble_uncertainty", coefficient=coefficient, ddof=ddof)
    return Parts(clipped(clip, clip), advantages("gae_advantages", gamma=1.0, lam=0.95), found)


@register("Retroformer: Retrospective Large Language Agents with Policy Gradient Optimization (arXiv 2308.02151)")
def retroformer(*, clip: float = 0.2) -> Parts:
    """Retroformer: PPO of the model that writes reflections; a reflection's reward is the next trial's return minus this one's.

    The released pipeline trains a reward model on the sign of that difference and gives its logit to PPO; clip 0.2 is its trainer's
    default.
    """
    return Parts(clipped(clip, clip), advantages("gae_advantages", gamma=1.0, lam=0.95), rewards("return_difference"))


@register("SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF (arXiv 2411.01798)")
def salsa(*, clip: float = 0.2, coefficient: float = 0.05) -> Parts:
    """SALSA: PPO whose reference is the average of two SFT models' weights: ref_log_probs are that model's.

    The penalty is in the reward, k1. Averaging the log-probs of the two models is something else. Assumed: 0.05 (the paper says small).
    """
    return Parts(clipped(clip, clip), advantages("gae_advantages", gamma=1.0, lam=0.95), rewards("kl_rewards", coefficient=coefficient))


@register("Zeroth-Order Optimization Meets Human Feedback: Provable Learning via Ranking Oracles (arXiv 2303.03751)")
def rank(*, clip: float = 0.2, top: int | None = None) -> Parts:
    """Only the order of the rewards counts: (beaten - beaten by) / known comparisons within the group, with GRPO's loss.

    The ranking map of ZO-RankSGD, whose optimiser in parameter space is no loss. Its released weights are one unit too large on every
    ranked item.
    """
    return Parts(clipped(clip, clip), advantages("rank_advantages", top=top))


@register("N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning (arXiv 1709.06030)")
def running_baseline(*, decay: float = 0.9) -> Parts:
    """REINFORCE with a running baseline per agent, updated after use.

    N2N's code subtracts the mean of past epochs' averages; the exponential form is the usual one. decay 0.9 is assumed.
    """
    from ..objective import NoRatio, Reinforce, SequenceMeanTokenSum

    found = advantages("running_baseline_advantages", decay=decay)
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum()), found)
