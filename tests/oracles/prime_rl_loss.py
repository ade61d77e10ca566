"""prime-rl's compute_loss: the gated policy gradient against the sampling engine, cross-entropy and a reverse KL, each with its count."""

import torch

from gigpo_fast.objective import (
    DPPOTV,
    K1,
    K2,
    Detached,
    KLPenalty,
    NegativeLogLikelihood,
    NoSurrogate,
    PolicyObjective,
    ProbabilityDifference,
    Rejection,
    SurrogateSum,
    TokenRatio,
    TokenSum,
    TokenWeights,
    TotalVariation,
    Unclipped,
    Weighted,
)

from .adapter import Adapter, Answer
from .policy import call
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs, mask, engine = inputs["log_probs"], inputs["mask"].bool(), inputs["inference_log_probs"]
    parts = []

    def add(trained, weights, scale, surrogate, penalty, **more):
        weights = trained.float() if weights is None else weights
        objective = PolicyObjective(TokenRatio(None), surrogate, penalty, TokenWeights(), aggregation=TokenSum())
        extras = {"weights": weights, "rollout_log_probs": engine}
        parts.append(
            call(log_probs, inputs["advantages"], trained, objective, old_log_probs=engine, extras=extras, denominator=float(scale), **more)
        )

    add(mask, inputs["rl_weights"], config["rl_scale"], _policy_term(config), _to_engine(config["kl_tau"]))
    if inputs["ce_weights"] is not None:  # its weights alone say where it applies
        add(torch.ones_like(mask), inputs["ce_weights"], config["ce_scale"], NegativeLogLikelihood(), None)
    if inputs["ref_kl_weights"] is not None and inputs["ref_log_probs"] is not None:
        constants = config["ref_kl_constants"]
        gate = Rejection(ProbabilityDifference(), low=-constants["mask_low"], current=True)
        reverse = KLPenalty(1.0, Detached(K1()), importance_weighted=True, weighting=gate)
        penalties = (reverse, _to_engine(constants["kl_tau"]))
        add(mask, inputs["ref_kl_weights"], config["ref_kl_scale"], NoSurrogate(), penalties, ref_log_probs=inputs["ref_log_probs"])
    return Answer({"loss": sum(part.loss for part in parts), "grad_log_probs": sum(part.gradient for part in parts)})


def _policy_term(config):
    if config["type"] == "ipo":
        surrogate = Weighted(Unclipped(), Rejection(TotalVariation(), high=config["ipo_threshold"], current=True))
    else:
        surrogate = DPPOTV(config["dppo_mask_low"], config["dppo_mask_high"], maximum=None, score_function=False)
    return SurrogateSum((surrogate,), (config["adv_tau"],))


def _to_engine(tau):
    """tau (log ratio)^2 to the engine, which stands in for the old policy."""
    return KLPenalty(2 * tau, K2(), anchor="old")


ADAPTER = Adapter(answer, outside={"metrics_per_sample.*": "reported per sample, of its kept and dropped tokens"})
