"""Right answers of a group above its wrong ones: DisCO, within a trust region, and REAL, as a classification."""

from ..objective import GroupContrast, HingeKL, KLPenalty, PolicyObjective, RewardLabels, SequenceMeanTokenMean, TokenMean, TokenRatio
from .base import Parts, register

_DISCO = "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization (arXiv 2505.12366)"


def _objective(contrast: GroupContrast, beta: float, threshold: float) -> PolicyObjective:
    return PolicyObjective(TokenRatio(None), contrast, HingeKL(beta, threshold), aggregation=SequenceMeanTokenMean())


@register(_DISCO)
def disco(*, temperature: float = 10.0, ratio_score: bool = False, beta: float = 1000.0, threshold: float = 1e-4) -> Parts:
    """DisCO: -(mean score of right answers - temperature log mean exp(score / temperature) of wrong ones) + beta / 2 [KL - threshold]_+^2.

    The score is the mean log-prob of a response's tokens, or with ratio_score the mean ratio. temperature 10 (1 for ratio_score), beta 1000
    and 1e-4: the paper's setting. Pass advantages 0, extras group_ids and correct, and denominator=number of groups, degenerate ones
    included. The penalty has the formula's gradient and, as in the released code, the value beta [KL - threshold]_+ KL. The contrast has
    the formula's value; there it has another one with the same gradient, and disco_Lratio raises.
    """
    return Parts(_objective(GroupContrast(temperature, ratio_score), beta, threshold))


@register(_DISCO)
def disco_b(*, ratio_score: bool = False, beta: float = 1000.0, threshold: float = 1e-4) -> Parts:
    """DisCO-b: the plain mean over wrong answers. No released script runs it, though four are named after it."""
    return Parts(_objective(GroupContrast(None, ratio_score), beta, threshold))


@register("Rewards as Labels: Revisiting RLVR from a Classification Perspective (arXiv 2602.05630)")
def real(*, tau: float = 0.5, kl_coefficient: float = 0.0) -> Parts:
    """REAL: log(1 + sum of exp(s / tau) over wrong answers) + log(1 + sum of exp(-s / tau) over right ones), s the mean log-ratio.

    No advantages: pass 0, extras group_ids and correct, and denominator=number of groups, those with one kind of answer included, which add
    nothing. tau 0.5: ms-swift's default. The penalty is a token mean of its own.
    """
    penalty = KLPenalty(kl_coefficient, aggregation=TokenMean()) if kl_coefficient else None
    return Parts(PolicyObjective(TokenRatio(None), RewardLabels(tau), penalty, aggregation=SequenceMeanTokenMean()))
