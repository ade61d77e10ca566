"""An objective made of the package's own blocks, as the plain arguments that the reference takes."""

from typing import Any

from .. import checks
from .. import objective as blocks

_RATIOS = {blocks.TokenRatio: "token", blocks.NoRatio: "none", blocks.SequenceRatio: "sequence"}
_SURROGATES = {blocks.Clip: "clip", blocks.Reinforce: "reinforce"}
_ESTIMATORS = {blocks.K1: "k1", blocks.K2: "k2", blocks.K3: "k3", blocks.AbsoluteKL: "abs"}
_AGGREGATIONS = {
    blocks.TokenMean: "token_mean", blocks.TokenSum: "token_sum", blocks.SequenceMeanTokenSum: "sequence_mean_token_sum",
    blocks.SequenceMeanTokenMean: "sequence_mean_token_mean", blocks.SequenceMeanTokenSumNorm: "sequence_mean_token_sum_norm",
}  # fmt: skip


def described(objective: blocks.PolicyObjective) -> dict[str, Any]:
    """Keywords of reference.loss.policy_loss. Raises TypeError for a block that the reference does not know."""
    ratio, surrogate, aggregation = objective.ratio, objective.surrogate, objective.aggregation
    if objective.weighting is not None:
        _named("weighting", objective.weighting, {blocks.TokenWeights: "weights"})
    found = {
        "ratio": _named("ratio", ratio, _RATIOS), "log_ratio_clip": ratio.log_ratio_clip,
        "surrogate": _named("surrogate", surrogate, _SURROGATES),
        "aggregation": _named("aggregation", aggregation, _AGGREGATIONS), "length": getattr(aggregation, "length", None),
    }  # fmt: skip
    if isinstance(ratio, blocks.SequenceRatio) and ratio.stop_gradient_mean:
        found["ratio"] = "sequence_stop_gradient"
    if isinstance(surrogate, blocks.Clip):
        found |= {"clip_low": surrogate.low, "clip_high": surrogate.high, "dual": surrogate.dual, "ceiling": surrogate.ceiling}
    if objective.entropy_bonus is not None:
        found["entropy_coefficient"] = objective.entropy_bonus.coefficient
    if objective.divergence is not None:
        found |= _divergence(objective.divergence)
    return found


def _divergence(penalty: blocks.KLPenalty) -> dict[str, Any]:
    estimator, straight_through = penalty.estimator, False
    if isinstance(estimator, blocks.StraightThrough):
        estimator, straight_through = estimator.estimator, True
    found = {
        "kl": _named("divergence.estimator", estimator, _ESTIMATORS), "kl_coefficient": penalty.coefficient,
        "kl_importance_weighted": penalty.importance_weighted, "kl_straight_through": straight_through,
    }  # fmt: skip
    if isinstance(estimator, blocks.K3):
        found |= {"kl_input_clip": estimator.input_clip, "kl_output_clip": estimator.output_clip}
    return found


def _named(name: str, block: blocks.Block, table: dict[type, str]) -> str:
    if type(block) not in table:
        checks.fail("check_loss", f"objective.{name}", f"one of {[kind.__name__ for kind in table]}", block,
                    "the reference knows no other block: compare yours with a formula of your own", error=TypeError)  # fmt: skip
    return table[type(block)]
