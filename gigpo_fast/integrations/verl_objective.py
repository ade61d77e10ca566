"""What an ActorConfig of verl 0.9.1 says, in the engine's blocks: objective, aggregation, denominator, and verl's metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..objective import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    K1,
    K2,
    K3,
    SAPO,
    AbsoluteKL,
    Clip,
    CovarianceBand,
    CovarianceTop,
    EntropyBonus,
    Estimator,
    KLPenalty,
    NoRatio,
    PolicyObjective,
    Product,
    Ratio,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    StraightThrough,
    Surrogate,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
    Unclipped,
    Weighted,
)
from ..objective.aggregation import Aggregation
from ..objective.surrogate import Clipped

PREFIX = "gigpo_fast_"
MODES = ("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo")
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
_INFO = ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")
_K3 = K3(input_clip=20.0, output_clip=10.0)
_ESTIMATORS = {"kl": K1(), "k1": K1(), "abs": AbsoluteKL(), "mse": K2(), "k2": K2(), "low_var_kl": _K3, "k3": _K3}


@dataclasses.dataclass(frozen=True)
class EitherSideGMPO(GMPO):
    """GMPO that counts as clipped every log-ratio outside its bounds, also where the minimum takes the unclipped one: verl's metric."""

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        log_ratio = torch.log(ratio)
        outside = (log_ratio < -self.low) | (log_ratio > self.high)
        return Clipped(outside & (batch.advantages < 0), outside & (batch.advantages > 0), torch.zeros_like(outside))


@dataclasses.dataclass(frozen=True)
class ReportedMask(Weighted):
    """Weighted that counts as clipped the tokens whose weight is 0, and no others: what verl reports of clip_cov."""

    def clipped(self, batch: TokenBatch, ratio: Tensor) -> Clipped:
        dropped = self.weighting.factor(batch) == 0
        nothing = torch.zeros_like(dropped)
        return Clipped(nothing, dropped, nothing)


def mode_of(function: str, loss_mode: str) -> str:
    """The mode of verl that a loss_mode names, with our prefix or without; bypass_mode and unknown ones are refused."""
    mode = loss_mode.removeprefix(PREFIX)
    if mode == "bypass_mode":
        checks.fail(
            function,
            "policy_loss.loss_mode",
            "one that takes weights and rejections as they are",
            f"{loss_mode}, which makes them anew from every micro-batch",
            "use verl's own loss for it, or algorithm.rollout_correction.bypass_mode=False, whose weights are honoured here",
        )
    if mode not in MODES:
        checks.fail(function, "policy_loss.loss_mode", f"one of {MODES}", loss_mode, "use verl's own ppo_loss for other losses")
    return mode


def objective_of(
    mode: str,
    config: Any,
    aggregation: Aggregation,
    *,
    weighted: bool,
    kl: KLPenalty | None = None,
    bonus: EntropyBonus | None = None,
) -> PolicyObjective:
    """The objective of a mode. With `weighted` the policy term alone is multiplied by extras["weights"]."""
    ratio, surrogate, penalty = policy_term(mode, config)
    if weighted:
        surrogate = Weighted(surrogate, TokenWeights())
        if penalty is not None:  # verl's weights multiply all of the mode's own loss
            penalty = dataclasses.replace(penalty, weighting=Product((penalty.weighting, TokenWeights())))
    penalties = tuple(part for part in (penalty, kl) if part is not None)
    return PolicyObjective(ratio, surrogate, penalties or None, None, bonus, aggregation)


def weighted(objective: PolicyObjective) -> PolicyObjective:
    """An objective, all of it multiplied by extras["weights"]."""
    own = objective.weighting
    return dataclasses.replace(objective, weighting=TokenWeights() if own is None else Product((own, TokenWeights())))


def policy_term(mode: str, config: Any) -> tuple[Ratio, Surrogate, KLPenalty | None]:
    """Ratio, surrogate and, for kl_cov, the penalty that belongs to it, with the numbers of an ActorConfig."""
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    match mode:
        case "vanilla":
            return TokenRatio(20.0), Clip(low, high, dual=config.clip_ratio_c), None
        case "dppo_tv":
            return TokenRatio(20.0), DPPOTV(low, high, config.clip_ratio_c), None
        case "dppo_kl":
            return TokenRatio(20.0), DPPOKL(low, high, config.clip_ratio_c), None
        case "gspo":  # verl bounds the logarithm of the ratio on one side
            return SequenceRatio(log_ratio_clip=(float("-inf"), 10.0), stop_gradient_mean=True), Clip(low, high), None
        case "sapo":
            return TokenRatio(20.0), SAPO(config.tau_pos, config.tau_neg), None
        case "gpg":
            return NoRatio(), Reinforce(), None
        case "cispo":
            return TokenRatio(20.0), CISPO(low, high), None
        case "geo_mean":
            return TokenRatio(None), EitherSideGMPO(low, high), None
        case "dro":
            return TokenRatio(None), DRO(config.policy_loss.dro_beta), None
        case "clip_cov":
            of = config.policy_loss
            band = CovarianceBand(
                _given(of.clip_cov_ratio, 0.0002), _given(of.clip_cov_lb, 1.0), _given(of.clip_cov_ub, 5.0), clip_low=low, clip_high=high
            )
            return TokenRatio(None), ReportedMask(Clip(low, high), band), None
        case "kl_cov":
            of = config.policy_loss
            covariant = CovarianceTop(_given(of.kl_cov_ratio, 0.0002))
            penalty = KLPenalty(_given(of.ppo_kl_coef, 1.0), AbsoluteKL(), anchor="old", weighting=covariant)
            return TokenRatio(None), Unclipped(), penalty
    raise ValueError(f"policy_term: mode must be one of {MODES}, got {mode!r}; see mode_of")


def aggregation_of(function: str, name: str, *, length: float) -> Aggregation:
    """The aggregation that a loss_agg_mode names; `length` is what "-sum-norm" divides by."""
    match name:
        case "token-mean":
            return TokenMean()
        case "token-sum":
            return TokenSum()
        case "seq-mean-token-sum":
            return SequenceMeanTokenSum()
        case "seq-mean-token-mean":
            return SequenceMeanTokenMean()
        case "seq-mean-token-sum-norm":
            return SequenceMeanTokenSumNorm(length)
    checks.fail(function, "loss_agg_mode", f"one of {AGGREGATIONS}", name, "see verl's ActorConfig")


def denominator_of(function: str, aggregation: Aggregation, info: Mapping[str, Any]) -> float | Tensor | None:
    """What the sum is divided by: the whole batch's tokens or rows over dp_size, since FSDP and Megatron average over their ranks.

    None, this call's own count, where verl says nothing of the whole batch; that is right for one micro-batch on one rank.
    """
    unknown = sorted(set(info) - set(_INFO))
    if unknown:
        checks.fail(function, "config.global_batch_info", f"a dict of {_INFO}", f"also {unknown}", "leave them out: they would not be read")
    ranks = _given(info.get("dp_size"), 1)
    name = {"tokens": "batch_num_tokens", "sequences": "global_batch_size"}.get(aggregation.counts)
    total = 1 if name is None else info.get(name)
    if total is None:
        if ranks > 1:
            expected = f"given with dp_size {ranks} for {type(aggregation).__name__}"
            checks.fail(function, f"config.global_batch_info[{name!r}]", expected, None, "count over all ranks, as verl's engine does")
        return None
    if not isinstance(total, Tensor) and not total > 0:
        checks.fail(function, f"config.global_batch_info[{name!r}]", "> 0", total, "leave out batches in which nothing is trained")
    return total / ranks


def kl_penalty_of(function: str, config: Any) -> KLPenalty | None:
    """The penalty against the reference policy, None without use_kl_loss."""
    if not config.use_kl_loss:
        return None
    return KLPenalty(config.kl_loss_coef, estimator_of(function, config.kl_loss_type))


def estimator_of(function: str, kl_type: str) -> Estimator:
    """The estimator that a kl_loss_type names; "+" has the gradient of k2."""
    found = _ESTIMATORS.get(kl_type.removesuffix("+"))
    if found is None:
        fix = "the exact divergence needs whole distributions, which no loss of verl has" if kl_type == "full" else "see verl's kl_penalty"
        checks.fail(function, "kl_loss_type", f"one of {tuple(_ESTIMATORS)}, or one of them with +", kl_type, fix)
    return StraightThrough(found) if kl_type.endswith("+") else found


def metrics_of(mode: str, found: Mapping[str, float]) -> dict[str, float]:
    """What verl's function of this mode reports, from the engine's metrics."""
    # A micro-batch without a trained token has no means; verl's functions say 0 there.
    low, high, dual, kl = (found.get(name, 0.0) for name in ("clip_fraction_low", "clip_fraction_high", "dual_clip_fraction", "approx_kl"))
    match mode:
        case "gpg":
            return {}
        case "kl_cov":
            return {"actor/ppo_kl": found.get("ref_kl", 0.0)}  # the estimate of its own penalty, the first one
        case "dro":
            return {"actor/ppo_kl": kl}
        case "clip_cov":
            return {"actor/pg_clipfrac": high, "actor/ppo_kl": kl}
        case "geo_mean":
            return {"actor/pg_clipfrac": high, "actor/ppo_kl": kl, "actor/pg_clipfrac_lower": low}
    return {"actor/pg_clipfrac": low + high, "actor/ppo_kl": kl, "actor/pg_clipfrac_lower": dual}


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
