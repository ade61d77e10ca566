"""SPO: advantages of segments, and only the tokens that were no foregone conclusion are trained."""

import math

from ..objective import (
    K3,
    Clip,
    KLPenalty,
    Normalized,
    OldProbability,
    PolicyObjective,
    RatioGuard,
    SequenceMeanTokenSum,
    TokenRatio,
    Weighted,
)
from .base import Parts, register
from .common import advantages

_SPO = "Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language Models (arXiv 2505.23564)"


def _objective(clip: float, kl_coefficient: float, threshold: float) -> PolicyObjective:
    gate = OldProbability(threshold)
    penalty = (
        KLPenalty(kl_coefficient, K3(10.0), weighting=gate, aggregation=SequenceMeanTokenSum(), clip=(0.0, math.inf))
        if kl_coefficient
        else None
    )
    return PolicyObjective(TokenRatio(10.0), Weighted(Clip(clip, clip), Normalized(gate)), penalty, RatioGuard(10.0, 10.0))


@register(_SPO)
def spo_chain(*, clip: float = 0.2, kl_coefficient: float = 1e-4, threshold: float = 0.9) -> Parts:
    """SPO-chain: cut at every fifth token that the old policy found less likely than 0.9; A = value at the segment's end minus at its
    start.

        cuts = low_probability_cuts(old_log_probs, mask);  A = segment_advantages(V at the cuts, cuts, scores, mask)

    The loss is a mean over tokens below the threshold (sections 4 to 6); k3 is summed over tokens, averaged over responses; log-ratios are
    clamped at 10, a batch of mean ratio above 10 is skipped: the authors' code and its Qwen configuration (1e-4). Values come from the
    caller's rollouts.
    """
    return Parts(_objective(clip, kl_coefficient, threshold), advantages("segment_advantages"))


@register(_SPO)
def spo_tree(*, clip: float = 0.2, kl_coefficient: float = 1e-4, threshold: float = 0.9, scale: str | None = None) -> Parts:
    """SPO-tree: A of a node is its value minus its parent's, over the siblings' deviation with scale="std" (the code's "grpo"; None its
    "rloo").

    values = tree_values(scores, parent, depth=3). Otherwise spo_chain. Their code also drops nodes whose advantage is 0: zero-advantage
    tokens cost no backward here and add nothing.
    """
    return Parts(_objective(clip, kl_coefficient, threshold), advantages("tree_advantages", scale=scale))
