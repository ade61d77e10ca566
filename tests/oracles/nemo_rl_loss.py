"""NeMo-RL's ClippedPGLossFn: clipped, dual-clipped, CISPO, GSPO and REINFORCE, with engine corrections, KL and an NLL on positives."""

from gigpo_fast.objective import (
    CISPO,
    K1,
    K2,
    K3,
    Clip,
    KLPenalty,
    NegativeLogLikelihood,
    NoRatio,
    NoSurrogate,
    PolicyObjective,
    PositiveScores,
    Product,
    Reinforce,
    Rejection,
    RolloutCorrection,
    RolloutRatio,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceRatio,
    SequenceSum,
    TokenLevel,
    TokenMean,
    TokenRatio,
    Weighted,
)

from .adapter import Adapter, Answer
from .policy import call
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["token_mask"].bool() & (inputs["sample_mask"] > 0)[:, None]
    aggregation, total = TokenMean(), config["global_valid_toks"]
    if not config["token_level_loss"]:
        aggregation, total = SequenceMeanTokenMean(), config["global_valid_seqs"]
    ratio, surrogate = _policy_term(config)
    if config["use_importance_sampling_correction"]:
        surrogate = Weighted(surrogate, _correction(config))
    common = {
        "old_log_probs": inputs["prev_log_probs"],
        "extras": {"rollout_log_probs": inputs["generation_log_probs"]},
        "denominator": total,
    }

    def part(log_probs, objective, **more):
        return call(log_probs, inputs["advantages"], mask, objective, **{**common, **more})

    found = part(inputs["log_probs"], PolicyObjective(ratio, surrogate, aggregation=aggregation))
    outputs = {"loss": found.loss, "grad_log_probs": found.gradient}
    if inputs["ref_log_probs"] is not None:
        weight = RolloutRatio(None) if config["use_on_policy_kl_approximation"] else NoRatio()
        estimator = {"k1": K1, "k2": K2, "k3": K3}[config["reference_policy_kl_type"]](config["kl_input_clamp_value"])
        bound = config["kl_output_clamp_value"]  # of the weighted estimate
        penalty = KLPenalty(config["reference_policy_kl_penalty"], estimator, importance_weighted=weight, clip=bound)
        unfiltered = inputs["log_probs_unfiltered"]
        kl = part(
            inputs["log_probs"] if unfiltered is None else unfiltered,
            PolicyObjective(ratio, NoSurrogate(), penalty, aggregation=aggregation),
            ref_log_probs=inputs["ref_log_probs"],
        )
        outputs["loss"] = found.loss + kl.loss
        if unfiltered is None:
            outputs["grad_log_probs"] = found.gradient + kl.gradient
        else:
            outputs["grad_log_probs_unfiltered"] = kl.gradient
    if config["positive_example_nll_weight"]:
        positive = Weighted(NegativeLogLikelihood(), PositiveScores())
        scores = inputs["rewards"][:, None].expand_as(inputs["log_probs"]).contiguous()
        count = (mask & (scores > 0)).sum() / config["positive_example_nll_weight"]
        nll = part(inputs["log_probs"], PolicyObjective(ratio, positive), extras={"scores": scores}, denominator=count)
        outputs["loss"], outputs["grad_log_probs"] = outputs["loss"] + nll.loss, outputs["grad_log_probs"] + nll.gradient
    return Answer(outputs)


def _policy_term(config):
    low, high = config["ratio_clip_min"], config["ratio_clip_max"]
    surrogate = CISPO(low, high) if config["use_cispo"] else Clip(low, high, dual=config["ratio_clip_c"])
    if config["disable_ppo_ratio"]:
        return NoRatio(), Reinforce()
    if config["force_on_policy_ratio"]:
        return NoRatio(), surrogate
    return SequenceRatio(None) if config["sequence_level_importance_ratios"] else TokenRatio(None), surrogate


def _correction(config):
    kind = config["truncated_importance_sampling_type"]
    low, high = config["truncated_importance_sampling_ratio_min"], config["truncated_importance_sampling_ratio"]
    level = SequenceSum() if config["sequence_level_importance_ratios"] else TokenLevel()
    if kind == "seq-mask-tis":
        return Product((RolloutCorrection(low=0.0, high=None, log_ratio_clip=None), Rejection(None, SequenceMean(), low, high)))
    if kind is None:
        low, high = 0.0, None
    return RolloutCorrection(level, low, high, truncate=kind != "icepop", log_ratio_clip=None)


_REPORT = "the trainer's own report: parts of the loss, extrema, and distances between engine and trainer that no loss depends on"
_NAMES = ("probs_ratio", "probs_ratio_clamped", "probs_ratio_min", "probs_ratio_max", "probs_ratio_clamped_min", "probs_ratio_clamped_max")
_NAMES += ("kl_penalty", "token_mult_prob_error", "gen_kl_error", "policy_kl_error", "js_divergence_error", "sampling_importance_ratio")
_NAMES += ("num_valid_samples", "approx_entropy", "positive_nll_loss", "is_oob_ratio")
ADAPTER = Adapter(answer, outside=dict.fromkeys(_NAMES, _REPORT))
