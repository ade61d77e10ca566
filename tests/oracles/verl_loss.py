"""verl's policy losses (verl.trainer.ppo.core_algos): log-probs and a mask to loss, gradient and metrics."""

from typing import Any

from gigpo_fast.objective import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    SAPO,
    AbsoluteKL,
    Clip,
    CovarianceTop,
    KLPenalty,
    NoRatio,
    PolicyObjective,
    Reinforce,
    RolloutCorrection,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
    Unclipped,
    Weighted,
)

from .adapter import Adapter, Answer, Unsupported
from .policy import call
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs, mode = case.config, case.inputs, case.config["loss_mode"]
    weights = inputs.get("rollout_is_weights")
    ratio, surrogate, penalty = _policy_term(config)
    aggregation = _aggregation(config["loss_agg_mode"], width=inputs["log_probs"].shape[1])
    denominator = None
    if mode == "sapo":  # whatever the aggregation asked for
        aggregation = SequenceMeanTokenMean()
    if mode == "geo_mean":  # the same, and rows without a token count
        aggregation, denominator = SequenceMeanTokenMean(), float(inputs["log_probs"].shape[0])
    extras = {"weights": weights}
    whole = mode == "kl_cov"  # here the weights multiply the penalty too
    weighting = None if weights is None else TokenWeights()
    if mode == "geo_mean" and weights is not None:  # their geometric mean over the row
        weighting = RolloutCorrection(SequenceMean(), low=0.0, high=None, log_ratio_clip=None)
        extras = {"rollout_log_probs": inputs["old_log_probs"] - weights.log()}
    objective = PolicyObjective(
        ratio,
        surrogate if weighting is None or whole else Weighted(surrogate, weighting),
        penalty,
        weighting if whole else None,
        aggregation=aggregation,
    )
    found = call(
        inputs["log_probs"],
        inputs["advantages"],
        inputs["mask"],
        objective,
        old_log_probs=inputs["old_log_probs"],
        extras=extras,
        denominator=denominator,
    )
    metrics = found.metrics
    outputs = {
        "loss": found.loss,
        "grad_log_probs": found.gradient,
        "actor/ppo_kl": metrics["ref_kl"] if penalty else metrics["approx_kl"],  # kl_cov reports its penalty's estimate, |log ratio|
    }
    if mode != "geo_mean":
        outputs["actor/pg_clipfrac"] = metrics["clip_fraction_low"] + metrics["clip_fraction_high"]
        outputs["actor/pg_clipfrac_lower"] = metrics["dual_clip_fraction"]
    return Answer(outputs)


def _policy_term(config: dict[str, Any]):
    low, high = config["clip_ratio_low"], config["clip_ratio_high"]
    match config["loss_mode"]:
        case "vanilla":
            return TokenRatio(20.0), Clip(low, high, dual=config["clip_ratio_c"]), None
        case "gspo":  # verl bounds the logarithm of the ratio on one side
            return SequenceRatio(log_ratio_clip=(float("-inf"), 10.0), stop_gradient_mean=True), Clip(low, high), None
        case "gpg":
            return NoRatio(), Reinforce(), None
        case "sapo":
            return TokenRatio(20.0), SAPO(config["tau_pos"], config["tau_neg"]), None
        case "cispo":
            return TokenRatio(20.0), CISPO(low, high), None
        case "dppo_tv":
            return TokenRatio(20.0), DPPOTV(low, high, config["clip_ratio_c"]), None
        case "dppo_kl":
            return TokenRatio(20.0), DPPOKL(low, high, config["clip_ratio_c"]), None
        case "dro":
            return TokenRatio(20.0), DRO(config["dro_beta"]), None
        case "geo_mean":
            return TokenRatio(20.0), GMPO(low, high), None
        case "kl_cov":
            covariant = CovarianceTop(config["kl_cov_ratio"])
            return TokenRatio(None), Unclipped(), KLPenalty(config["ppo_kl_coef"], AbsoluteKL(), anchor="old", weighting=covariant)
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


_EITHER_SIDE = "in geo_mean verl counts log-ratios beyond either bound, also where the minimum takes the unclipped one"
ADAPTER = Adapter(answer, outside={"actor/pg_clipfrac": _EITHER_SIDE, "actor/pg_clipfrac_lower": _EITHER_SIDE})
