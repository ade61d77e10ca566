"""TRL's GRPOTrainer._compute_loss, its GMPO and RLOO relatives, and the importance ratio against vLLM."""

import math

import torch

from gigpo_fast.objective import (
    GMPO,
    K3,
    SAPO,
    VESPO,
    CISPOAbsolute,
    Clip,
    EntropyBonus,
    KLPenalty,
    Normalized,
    NoSurrogate,
    OffPolicySequenceMask,
    PolicyObjective,
    Product,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceProductRatio,
    SequenceRatio,
    TokenMean,
    TokenRatio,
    TokenWeights,
    TopEntropy,
    Weighted,
)

from .adapter import Adapter, Answer, Unsupported
from .policy import call, factors
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["completion_mask"].bool()
    if inputs.get("tool_mask") is not None:
        mask = mask & inputs["tool_mask"].bool()
    log_probs, rows = inputs["log_probs"], float(mask.shape[0])
    advantages = inputs["advantages"] if inputs["advantages"].dim() == 2 else inputs["advantages"][:, None]
    steps = float(config.get("gradient_accumulation_steps", 1))
    ratio, surrogate = _policy_term(config)
    aggregation, denominator = _aggregation(config, inputs, mask, rows)
    old, extras, masks = inputs["old_log_probs"], {}, []
    if config.get("off_policy_mask_threshold") is not None:
        masks.append(OffPolicySequenceMask(config["off_policy_mask_threshold"]))
        extras["rollout_log_probs"] = inputs["sampling_log_probs"]
    if config["loss_type"] == "gmpo" and config["top_entropy_quantile"] < 1.0:  # the geometric mean is of the uncertain tokens alone
        top, ids = TopEntropy(config["top_entropy_quantile"]), torch.zeros_like(mask, dtype=torch.int64)
        mask = mask & (factors(top, mask, old=log_probs, sequence_ids=ids, entropy=inputs["entropies"]) > 0)
    elif config.get("top_entropy_quantile", 1.0) < 1.0:
        masks.append(TopEntropy(config["top_entropy_quantile"]))
    weights, folded = inputs.get("importance_sampling_ratio"), old
    if config.get("use_vllm") and weights is not None:
        if config["loss_type"] == "vespo":  # one ratio with the policy's own
            folded = (log_probs.detach() if old is None else old) - weights.expand_as(log_probs).log()
        else:
            masks.append(TokenWeights())
            extras["weights"] = weights.expand_as(log_probs).contiguous()
    if masks:
        surrogate = Weighted(surrogate, Product(tuple(masks)))
    common = {"entropy": inputs["entropies"], "extras": extras, "denominator": denominator * steps}
    found = call(log_probs, advantages, mask, PolicyObjective(ratio, surrogate, aggregation=aggregation), old_log_probs=folded, **common)
    loss, gradient, entropy_gradient, metrics = found.loss, found.gradient, None, dict(found.metrics)
    if config.get("beta"):
        level = _level(config)
        penalty = KLPenalty(config["beta"], K3(input_clip=None), importance_weighted=bool(config.get("use_bias_correction_kl")))
        objective = PolicyObjective(level, NoSurrogate(), penalty, aggregation=aggregation)
        part = call(log_probs, advantages, mask, objective, old_log_probs=old, ref_log_probs=inputs["ref_log_probs"], **common)
        loss, gradient, metrics["kl"] = loss + part.loss, gradient + part.gradient, part.metrics["ref_kl"]
    if config.get("entropy_coef"):
        top = None if config["top_entropy_quantile"] == 1.0 else Normalized(TopEntropy(config["top_entropy_quantile"]))
        objective = PolicyObjective(surrogate=NoSurrogate(), weighting=top, entropy_bonus=EntropyBonus(config["entropy_coef"]))
        part = call(log_probs, advantages, mask, objective, **{**common, "denominator": mask.sum() * steps})
        loss, entropy_gradient = loss + part.loss, part.entropy_gradient
    if config["loss_type"] in ("gmpo", "rloo_trainer"):  # a row without a token has ratio 1 there: a constant, without gradient
        loss = loss - advantages[~mask.any(1)].sum() / rows
    outputs = {"loss": loss, "grad_log_probs": gradient, "grad_entropies": entropy_gradient}
    if config["loss_type"] != "gmpo":
        outputs["entropy"] = metrics["entropy"]
    if "kl" in metrics and not config.get("use_bias_correction_kl"):
        outputs["kl"] = metrics["kl"]
    if config["loss_type"] in ("grpo", "bnpo", "dr_grpo", "dapo") and config["importance_sampling_level"] == "token":
        outputs["clip_ratio/low_mean"] = metrics["clip_fraction_low"]
        outputs["clip_ratio/high_mean"] = metrics["clip_fraction_high"]
        outputs["clip_ratio/region_mean"] = metrics["clip_fraction_low"] + metrics["clip_fraction_high"]
    slack = {}
    if config["loss_type"] == "sapo":  # what float32 loses of a sum of terms of both signs: half a unit in the last place of each
        size = call(
            log_probs, advantages.abs(), mask, PolicyObjective(ratio, surrogate, aggregation=aggregation), old_log_probs=old, **common
        )
        slack["loss"] = size.loss.abs() * torch.finfo(torch.float32).eps / 2
    return Answer(outputs, slack)


def _level(config):
    return SequenceRatio(None) if config.get("importance_sampling_level") == "sequence" else TokenRatio(None)


def _policy_term(config):
    low, high, kind = config.get("epsilon", 0.2), config.get("epsilon_high"), config["loss_type"]
    high = low if high is None else high
    match kind:
        case "grpo" | "bnpo" | "dr_grpo" | "dapo" | "luspo":
            return _level(config), Clip(low, high, ceiling=config["delta"])
        case "cispo":
            return _level(config), CISPOAbsolute(config["epsilon_high_in_force"])
        case "sapo":
            return _level(config), SAPO(config["sapo_temperature_pos"], config["sapo_temperature_neg"])
        case "vespo":
            numbers = (config[f"vespo_{name}"] for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg"))
            return SequenceProductRatio((math.log(1e-8), 20.0), token_clip=20.0), VESPO(*numbers)
        case "gmpo":
            return TokenRatio(None), GMPO(low, high)
        case "rloo_trainer":
            return SequenceProductRatio(None), Clip(low, high)
    raise Unsupported(f"no blocks for loss_type {kind!r}")


def _aggregation(config, inputs, mask, rows):
    match config["loss_type"]:
        case "grpo" | "sapo" | "gmpo" | "rloo_trainer":
            return SequenceMeanTokenMean(), rows
        case "bnpo":
            return TokenMean(), mask.sum().clamp(min=1).float()
        case "dr_grpo":
            return SequenceMeanTokenSumNorm(config["max_completion_length"]), rows
        case "luspo":
            return SequenceMeanTokenSum(), rows
    # The trainer's count of tokens is of a generation batch; its share of one optimiser step is this.
    return TokenMean(), inputs["num_items_in_batch"] / config["steps_per_generation"]


_EXTREMES = "extrema over rows and processes of what the mean is reported of"
_OTHER = "a diagnostic of the trainer that no loss depends on, or reported there in a mean of its own kind (rows, importance-weighted)"
ADAPTER = Adapter(
    answer,
    looser={"loss": "SAPO's terms have both signs and nearly cancel: half a unit in the last place of the sum of their sizes"},
    outside={
        "clip_ratio/low_min": _EXTREMES,
        "clip_ratio/high_max": _EXTREMES,
        **dict.fromkeys(("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "cispo_clip_ratio", "kl"), _OTHER),
        **dict.fromkeys(("vespo/phi_seq_mean", "policy_loss", "entropy_coef", "entropy"), _OTHER),
    },
)
