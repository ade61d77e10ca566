"""OpenRLHF's PolicyLoss: PPO and GSPO with its corrections between the trainer and the sampling engine."""

from gigpo_fast.objective import (
    BinaryKL,
    Clip,
    PolicyObjective,
    Product,
    Rejection,
    RolloutCorrection,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenLevel,
    TokenMean,
    TokenRatio,
    TotalVariation,
    Weighted,
)

from .adapter import Adapter, Answer, Unsupported
from .policy import call
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "loss" in config:
        raise Unsupported(f"{config['loss']} is no policy loss")
    old, mask = inputs["old_log_probs"], inputs["mask"].bool()
    surrogate = Clip(config["clip_eps_low"], config["clip_eps_high"], dual=config["dual_clip"])
    gspo, corrected = config["policy_loss_type"] == "gspo", config["is_correction_level"] != "off"
    if gspo and corrected:  # the sampling engine is its old policy
        old = inputs["rollout_log_probs"]
    elif corrected:
        surrogate = Weighted(surrogate, _correction(config))
    aggregation = TokenMean() if config["token_level_loss"] and not gspo else SequenceMeanTokenMean()
    total = config["batch_num_tokens"] if isinstance(aggregation, TokenMean) else config["global_batch_size"]
    found = call(
        inputs["log_probs"],
        inputs["advantages"],
        mask,
        PolicyObjective(SequenceRatio(None) if gspo else TokenRatio(20.0), surrogate, aggregation=aggregation),
        old_log_probs=old,
        extras={"rollout_log_probs": inputs["rollout_log_probs"]},
        denominator=None if total is None else total / config["dp_size"],
    )
    fractions = found.metrics
    outputs = {"loss": found.loss, "grad_log_probs": found.gradient}
    if not gspo:
        outputs["ppo_kl"] = fractions["approx_kl"]
        outputs["clip_ratio"] = fractions["clip_fraction_low"] + fractions["clip_fraction_high"]
    return Answer(outputs)


_STATISTICS = {"ratio": None, "binary_kl": BinaryKL(), "tv": TotalVariation()}


def _correction(config):
    level = TokenLevel() if config["is_correction_level"] == "token" else SequenceMean()
    low, high = config["is_correction_threshold"]
    if config["is_correction_mode"] == "clip":
        return RolloutCorrection(level, low, high, log_ratio_clip=None)
    gate = Rejection(_STATISTICS[config["is_correction_gating"]], level, low, high)
    return Product((RolloutCorrection(low=0.0, high=None, log_ratio_clip=None), gate))  # what passes keeps its token's ratio


_CRITIC = "a critic's loss, of which gigpo_fast has none"
_OWN = "how far the sampling engine is from the trainer, and GSPO's metrics by rows: diagnostics that no loss depends on"
ADAPTER = Adapter(
    answer,
    excluded={
        "ppo/mask_all_empty": "the mean over no token at all is NaN there, 0 here",
        **dict.fromkeys(("value/None/True/mixed", "value/0.2/True/multiturn", "value/0.2/False/emptyrow"), _CRITIC),
    },
    outside=dict.fromkeys(("vllm_kl", "is_filter_ratio", "clip_ratio", "ppo_kl"), _OWN),
)
