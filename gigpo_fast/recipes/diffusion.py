"""Diffusion models: the log-probs are the caller's, of denoising steps or of masked tokens; the rest is the same machinery."""

from ..objective import (
    K3,
    Clip,
    KLPenalty,
    Normalized,
    PolicyObjective,
    RandomFraction,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    TokenRatio,
    TokenSum,
    Weighted,
)
from .base import Parts, register
from .common import group_relative

_MMADA = "MMaDA: Multimodal Large Diffusion Language Models (arXiv 2505.15809)"


@register("DanceGRPO: Unleashing GRPO on Visual Generation (arXiv 2505.07818)")
def dancegrpo(*, clip: float = 1e-4, fraction: float = 1.0, seed: int = 0) -> Parts:
    """DanceGRPO: one advantage for all denoising steps, a tight clip, a random part of the steps; log-probs (rows, steps) are means over
    latents.

        A = ((score - group mean) / (group std + 1e-8)).clamp(-5, 5);  loss = mean over the steps kept of the clipped loss

    clip 1e-4 and the clamp: the authors' FLUX script, which trains 0.6 of the steps: with fraction below 1 the choice is random, seeded,
    and reads extras token_keys. Several rewards (video) have a loss each, summed by coefficients.
    """
    from ..advantage import GroupStatistics

    surrogate = Clip(clip, clip)
    if fraction < 1:
        surrogate = Weighted(surrogate, Normalized(RandomFraction(fraction, seed)))
    return Parts(PolicyObjective(TokenRatio(None), surrogate), group_relative(statistics=GroupStatistics(count="row", eps=1e-8)))


@register(_MMADA)
def unigrpo(*, clip: float = 0.2, kl_coefficient: float = 0.01, anchor: str = "ref") -> Parts:
    """UniGRPO: GRPO on the masked tokens of a diffusion language model; several maskings of a response are rows with one advantage.

    The clipped term is a mean over a row's masked tokens, k3 a sum over them, both averaged over rows. Clip 0.2 and 0.01: the authors'
    dLLM-RL code. The paper's penalty is to the reference, the default here; the released code's is to the old policy: anchor="old".
    """
    return Parts(_penalised(clip, kl_coefficient, anchor, SequenceMeanTokenMean(), SequenceMeanTokenSum()), _z_scores())


@register(_MMADA)
def trado(*, clip: float = 0.2, kl_coefficient: float = 0.01) -> Parts:
    """UniGRPO as the TraDo and SDAR trainers have it: both terms divided by the full response length, k3 to the old policy.

    A token sum: pass denominator = rows x response length.
    """
    return Parts(_penalised(clip, kl_coefficient, "old", TokenSum(), None), _z_scores())


def _penalised(clip, kl_coefficient, anchor, aggregation, own) -> PolicyObjective:
    penalty = KLPenalty(kl_coefficient, K3(None), anchor=anchor, aggregation=own) if kl_coefficient else None
    return PolicyObjective(TokenRatio(None), Clip(clip, clip), penalty, aggregation=aggregation)


def _z_scores():
    from ..advantage import GroupStatistics

    return group_relative(statistics=GroupStatistics(count="row", eps=0.0, ddof=0))
