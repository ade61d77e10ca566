"""A teacher beside the reward, or instead of it."""

from ..objective import K1, K2, Detached, KLPenalty, NoSurrogate, PolicyObjective, StepAnneal, TokenRatio, TokenWeights, Unclipped
from .base import Parts, register
from .common import group_relative

_KDRL = "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement Learning (arXiv 2506.02208)"


def _objective(coefficient: float, masked: bool) -> PolicyObjective:
    penalty = KLPenalty(coefficient, K2(), anchor="teacher", weighting=TokenWeights() if masked else None)
    return PolicyObjective(TokenRatio(), Unclipped(), penalty)


@register(_KDRL)
def kdrl(*, coefficient: float = 2e-3, masked: bool = False) -> Parts:
    """KDRL: -rho A + coefficient k2 to the teacher on the student's own samples, a token mean; no clip, no reference.

    k2 because its gradient is that of the reverse divergence per token; k1 as a loss has none in expectation. 2e-3: section 3.3 by a
    re-implementation that cites it. With `masked` the penalty is weighted by extras weights: 1 for wrong responses (response level), or for
    groups without a right one, ~reward.any_of_group(correct, group) (group level).
    """
    return Parts(_objective(coefficient, masked), group_relative())


@register(_KDRL)
def kdrl_annealed(*, start: float = 5e-3, decrement: float = 5e-5, floor: float = 1e-3) -> Parts:
    """KDRL with an annealed coefficient: max(start - decrement step, floor), through objective.Scheduled(objective, schedules)(step).

    5e-3 to 1e-3 by 5e-5 a step, from the same source as kdrl's number.
    """
    return Parts(_objective(start, False), group_relative(), schedules={"divergence.coefficient": StepAnneal(start, decrement, floor)})


@register("On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (arXiv 2306.13649)")
def on_policy_distillation(*, coefficient: float = 1.0) -> Parts:
    """Reverse divergence to a teacher on the student's samples: sg(log_prob - teacher) as the reward of a policy gradient; no other reward.

    As slime and NeMo-RL train it (per token, importance-weighted), which is the gradient of the per-token divergence.
    """
    penalty = KLPenalty(coefficient, Detached(K1()), importance_weighted=True, anchor="teacher")
    return Parts(PolicyObjective(TokenRatio(), NoSurrogate(), penalty))
