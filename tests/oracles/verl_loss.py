"""verl's policy losses (verl.trainer.ppo.core_algos): log-probs and a mask to loss, gradient and metrics."""

from typing import Any

from gigpo_fast import loss
from gigpo_fast.objective import (
    Clip,
    NoRatio,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
)

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs = inputs["log_probs"].clone().requires_grad_()
    weights = inputs.get("rollout_is_weights")
    ratio, surrogate = _policy_term(config)
    result = loss.policy_loss(
        log_probs,
        inputs["advantages"],
        inputs["mask"].bool(),
        old_log_probs=inputs["old_log_probs"],
        extras=None if weights is None else {"weights": weights},
        objective=PolicyObjective(
            ratio,
            surrogate,
            weighting=None if weights is None else TokenWeights(),
            aggregation=_aggregation(config["loss_agg_mode"], width=log_probs.shape[1]),
        ),
    )
    result.loss.backward()
    metrics = result.metrics_as_floats()
    return Answer(
        {
            "loss": result.loss,
            "grad_log_probs": log_probs.grad,
            "actor/pg_clipfrac": metrics["clip_fraction_low"] + metrics["clip_fraction_high"],
            "actor/pg_clipfrac_lower": metrics["dual_clip_fraction"],
            "actor/ppo_kl": metrics["approx_kl"],
        }
    )


def _policy_term(config: dict[str, Any]):
    low, high = config["clip_ratio_low"], config["clip_ratio_high"]
    match config["loss_mode"]:
        case "vanilla":
            return TokenRatio(20.0), Clip(low, high, dual=config["clip_ratio_c"])
        case "gspo":  # verl bounds the logarithm of the ratio on one side
            return SequenceRatio(log_ratio_clip=(float("-inf"), 10.0), stop_gradient_mean=True), Clip(low, high)
        case "gpg":
            return NoRatio(), Reinforce()
        case other:
            raise Unsupported(f"no blocks for loss_mode {other!r}")


def _aggregation(name: str, *, width: int):
    match name:
        case "token-mean":
            return TokenMean()
        case "token-sum":
            return TokenSum()
        case "seq-mean-token-sum":
            return SequenceMeanTokenSum()
        case "seq-mean-token-mean":
            return SequenceMeanTokenMean()
        case "seq-mean-token-sum-norm":  # without a loss_scale_factor, verl's length is the width of the batch
            return SequenceMeanTokenSumNorm(width)
        case other:
            raise Unsupported(f"no aggregation for loss_agg_mode {other!r}")


ADAPTER = Adapter(answer)
