"""One ratio for a whole response: GSPO and its relatives."""

from ..objective import (
    GMPO,
    CISPOAbsolute,
    Clip,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    SequenceRatio,
    TokenRatio,
)
from .base import Parts, register
from .common import advantages, group_relative


@register("Group Sequence Policy Optimization (arXiv 2507.18071)")
def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Parts:
    """GSPO: the ratio is the geometric mean over the response, clipped there; group-normalised advantages.

    Bounds 3e-4 and 4e-4: section 5.1. The average is over tokens, then responses. The gradient flows through the mean.
    """
    return Parts(PolicyObjective(SequenceRatio(), Clip(clip_low, clip_high), aggregation=SequenceMeanTokenMean()), group_relative())


@register("Group Sequence Policy Optimization (arXiv 2507.18071)")
def gspo_token(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Parts:
    """GSPO-token: the same value, but each token's gradient is its own, so that advantages may differ within a response.

    With one advantage a response its gradient is that of gspo. This is verl's `gspo`.
    """
    ratio = SequenceRatio(stop_gradient_mean=True)
    return Parts(PolicyObjective(ratio, Clip(clip_low, clip_high), aggregation=SequenceMeanTokenMean()), group_relative())


@register("Geometric-Mean Policy Optimization (arXiv 2507.20673)")
def gmpo(*, low: float = 0.4, high: float = 0.4) -> Parts:
    """GMPO: -A times the geometric mean of the token ratios, each clipped in log space to [-low, high] on the pessimistic side.

    0.4 on both sides: the paper clips ratios to (e^-0.4, e^0.4). Unclamped beyond that, as in TRL and verl.
    """
    return Parts(PolicyObjective(TokenRatio(None), GMPO(low, high), aggregation=SequenceMeanTokenMean()), group_relative())


@register("Length-Unbiased Sequence Policy Optimization (TRL 1.16, loss_type luspo)")
def luspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Parts:
    """LUSPO: GSPO's ratio and clip, summed over tokens instead of averaged, so that a long response weighs by its length.

    As in TRL; the bounds are GSPO's. Assumed: nothing else differs from GSPO.
    """
    return Parts(PolicyObjective(SequenceRatio(), Clip(clip_low, clip_high), aggregation=SequenceMeanTokenSum()), group_relative())


@register("Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs (arXiv 2402.14740)")
def rloo_clipped(*, clip_low: float = 0.2, clip_high: float = 0.2) -> Parts:
    """RLOO as TRL trains it: the ratio of whole responses' probabilities, clipped at 0.2, times leave-one-out advantages."""
    objective = PolicyObjective(SequenceProductRatio(None), Clip(clip_low, clip_high), aggregation=SequenceMeanTokenMean())
    return Parts(objective, advantages("leave_one_out_advantages"))


@register("Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment (arXiv 2310.00212)")
def p3o_separate(*, epsilon: float = 0.2) -> Parts:
    """P3O, separate clipping: each response's ratio is clipped on its own, its advantage the weighted reward difference of the pair.

        A_i = (r_i - r_other) sg(rho_other);  loss = mean over both of max(-rho_i A_i, -clip(rho_i) A_i)

    Rewards contain -beta log(pi / ref). From the blog of 2023-10-16 and a note of theorem 1; the display of this form and epsilon 0.2 are
    assumed. The joint form is p3o.
    """
    objective = PolicyObjective(SequenceProductRatio(), Clip(epsilon, epsilon), aggregation=SequenceMeanTokenMean())
    return Parts(objective)


@register("Aligning Language Models with Preferences through f-divergence Minimization (arXiv 2302.08215)")
def f_dpg(*, maximum: float = float("inf")) -> Parts:
    """f-DPG: descend any f-divergence from an explicit target by policy gradient (theorem 1).

        A = pairwise.pseudo_rewards(log_probs, target_log_probs, divergence=JensenShannon()) - the mean of earlier ones
        loss = mean over responses of -sg(min(pi / proposal, maximum)) A S;  proposal: old_log_probs

    The Jensen-Shannon divergence is the authors' recommendation; their code bounds no weight, and its baseline is the mean of the last
    1024 pseudo-rewards of earlier calls.
    """
    return Parts(PolicyObjective(SequenceProductRatio(None), CISPOAbsolute(maximum), aggregation=SequenceMeanTokenSum()))
