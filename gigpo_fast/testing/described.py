"""An objective made of the package's own blocks, as the plain arguments that the reference takes: each block by its name and settings."""

import dataclasses
from typing import Any

from .. import checks
from .. import objective as blocks

_AGGREGATIONS = {
    blocks.TokenMean: "token_mean", blocks.TokenSum: "token_sum", blocks.SequenceMeanTokenSum: "sequence_mean_token_sum",
    blocks.SequenceMeanTokenMean: "sequence_mean_token_mean", blocks.SequenceMeanTokenSumNorm: "sequence_mean_token_sum_norm",
}  # fmt: skip
_KINDS = (blocks.Ratio, blocks.Surrogate, blocks.Penalty, blocks.Estimator, blocks.Weighting, blocks.EntropyTerm, blocks.Aggregation)


def described(objective: blocks.PolicyObjective) -> dict[str, Any]:
    """Keywords of reference.loss.policy_loss. Raises TypeError for a block that the reference does not know."""
    aggregation = objective.aggregation
    _spec("aggregation", aggregation)
    return {
        "ratio": _spec("ratio", objective.ratio),
        "surrogate": _spec("surrogate", objective.surrogate),
        "penalties": tuple(_spec("divergence", penalty) for penalty in objective.penalties),
        "entropy_term": None if objective.entropy_bonus is None else _spec("entropy_bonus", objective.entropy_bonus),
        "weighting": None if objective.weighting is None else _spec("weighting", objective.weighting),
        "aggregation": _AGGREGATIONS[type(aggregation)],
        "length": getattr(aggregation, "length", None),
    }


def _spec(name: str, value: Any) -> Any:
    """(class name, settings) of a block and of the blocks in it; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_spec(name, item) for item in value)
    if not isinstance(value, blocks.Block):
        return value
    if type(value) is not getattr(blocks, type(value).__name__, None):
        kind = next((kind for kind in _KINDS if isinstance(value, kind)), blocks.Block)
        known = [other for other in blocks.__all__ if _is_a(getattr(blocks, other), kind)]
        checks.fail("check_loss", f"objective.{name}", f"one of {known}", value,
                    "the reference knows no other block: compare yours with a formula of your own", error=TypeError)  # fmt: skip
    fields = dataclasses.fields(value)
    return type(value).__name__, {field.name: _spec(f"{name}.{field.name}", getattr(value, field.name)) for field in fields}


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind) and dataclasses.is_dataclass(value)
