"""ROLL's workers: the agentic one (token or segment ratio, corrections between trainer and engine) and the RLVR one with its variants."""

import torch

from gigpo_fast.objective import (
    CISPO,
    K3,
    TOPR,
    CISPOAbsolute,
    Clip,
    Kimi15,
    KLPenalty,
    PolicyObjective,
    ProbabilityDifference,
    Reinforce,
    Rejection,
    RolloutCorrection,
    SegmentMean,
    SegmentRatio,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    SequenceSum,
    TokenLevel,
    TokenMean,
    TokenRatio,
    TokenWeights,
    Weighted,
)

from .adapter import Adapter, Answer, Unsupported
from .policy import call, factors
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs, mask = inputs["log_probs"], inputs["mask"].bool()
    runs = torch.cat([mask[:, :1], mask[:, 1:] & ~mask[:, :-1]], 1)  # a segment is a run of trained tokens
    segments = runs.reshape(-1).cumsum(0).view(mask.shape) + torch.arange(mask.shape[0])[:, None] * mask.numel()
    aggregation, denominator, trained = _aggregation(config, mask)
    ratio, surrogate = _policy_term(config)
    correction = config["train_infer_correction"]
    weighting, rules = None, []
    if correction["is_weight"]["enabled"]:
        kind, high = correction["is_weight"]["weight_type"], correction["is_weight"]["upper_bound"]
        weighting = RolloutCorrection(_LEVELS[kind], 0.0, high, log_ratio_clip=None)
    rows = torch.arange(mask.shape[0])[:, None].expand(mask.shape)
    for rule in correction["filters"]:
        level = _LEVELS[rule["agg_type"]]
        if rule["ratio_enabled"]:
            rules.append(Rejection(None, level, rule["ratio_low"], rule["ratio_high"]))
        if rule["diff_enabled"]:
            rules.append(Rejection(ProbabilityDifference(), level, rule["diff_low"], rule["diff_high"]))
    given = {"old": inputs["old_log_probs"], "rollout_log_probs": inputs["infer_log_probs"], "segment_ids": segments}
    for rule in rules:  # what a filter drops leaves its row's mean
        trained = trained & (factors(rule, mask, sequence_ids=rows, **given) > 0)
    weights = torch.ones_like(log_probs)
    if config["length_loss_weight"]:  # a sample weight of the peer's own: 0.5 for the longest to 1.5 for the shortest, then to mean 1
        lengths = mask.sum(1).float()
        weights = weights * (1.5 - (lengths - lengths.min()) / (lengths.max() - lengths.min()))[:, None]
        weights, weighting = weights / weights[:, 0].mean(), TokenWeights()
    if weighting is not None:
        surrogate = Weighted(surrogate, weighting)
    penalty = KLPenalty(config["kl_loss_coef"], K3(None, 10.0), own_mask=True) if config["use_kl_loss"] else None
    found = call(
        log_probs,
        inputs["advantages"],
        trained,
        PolicyObjective(ratio, surrogate, penalty, aggregation=aggregation),
        old_log_probs=inputs["old_log_probs"],
        ref_log_probs=inputs["ref_log_probs"],
        extras={
            "rollout_log_probs": inputs["infer_log_probs"],
            "segment_ids": segments,
            "kl_mask": mask,
            "weights": weights,
            "scores": None if inputs["scores"] is None else inputs["scores"][:, None].expand_as(log_probs).contiguous(),
        },
        denominator=denominator,
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


_LEVELS = {"token": TokenLevel(), "geometric": SequenceMean(), "sequence": SequenceSum(), "segment": SegmentMean()}


def _policy_term(config):
    low, high = (config["pg_clip_low"], config["pg_clip_high"]) if config["use_pg_clip_range"] else (config["pg_clip"],) * 2
    clip = Clip(low, high, dual=1 + 2 * config["pg_clip"] if config["dual_clip_loss"] else None)
    ratio = TokenRatio(None)
    if config["worker"].startswith("agentic") and config["ratio_type"] == "segment":
        ratio = SegmentRatio(None)
    elif config["worker"].startswith("rlvr") and config["importance_sampling"] == "seq":
        ratio = SequenceRatio(None)
    match config.get("pg_variant"):
        case None | "ppo":
            return ratio, clip
        case "vanilla":
            return ratio, Reinforce()
        case "tis":
            return ratio, CISPOAbsolute(config.get("tis_upper_bound", 1.0))
        case "topr":
            weights = config.get("topr_positive_weight", 1.0), config.get("topr_negative_weight", 1.0)
            return ratio, TOPR(*weights, split_on_scores=True)
        case "cispo":
            bounds = config.get("cispo_epsilon_low", 0.1), config.get("cispo_epsilon_high", 0.1)
            return ratio, CISPO(*bounds, unified_mask=config.get("cispo_use_unified_mask", False))
        case "kimi15":
            return ratio, Kimi15(config.get("kimi15_tau", 0.1))
    raise Unsupported(f"no blocks for pg_variant {config['pg_variant']!r}")


def _aggregation(config, mask):
    """The aggregation, its denominator, and the tokens that enter: ROLL's token mean sums over all positions, trained or not."""
    match config["loss_agg_mode"]:
        case "token-mean":
            return TokenMean(), config["batch_num_tokens"], torch.ones_like(mask)
        case "seq-mean-token-sum":
            return SequenceMeanTokenSum(), config["global_valid_samples"], mask
        case "seq-mean-token-mean":
            return SequenceMeanTokenMean(), config["global_valid_samples"], mask
        case "seq-mean-token-sum-norm":
            return SequenceMeanTokenSumNorm(mask.shape[1]), 1.0, mask
    raise Unsupported(f"no aggregation for loss_agg_mode {config['loss_agg_mode']!r}")


_REPORT = "the workers' own report, in sums over micro-batches: parts of the loss, extrema, distances between trainer and engine"
ADAPTER = Adapter(answer, outside={"actor/*": _REPORT})
