"""Losses of the papers' own code: DisCO, the entropy mechanism, NFT, SPO, UniGRPO, DanceGRPO, one-shot RLVR, PPO-max, TON, MDPO, PROPS."""

import torch

from gigpo_fast.advantage import TRL, VERL, GroupStatistics, group_advantages
from gigpo_fast.objective import (
    K1,
    K2,
    K3,
    NFT,
    AbsoluteKL,
    AdvantageWeightedNLL,
    Clip,
    CovarianceTop,
    EntropyBonus,
    EntropyTarget,
    GroupContrast,
    HingeKL,
    KLPenalty,
    NegativeLogLikelihood,
    NoRatio,
    Normalized,
    NoSurrogate,
    OldProbability,
    PolicyObjective,
    RatioGuard,
    Reversed,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    SurrogateSum,
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

DANCE = GroupStatistics(count="row", eps=1e-8)
_PLAIN = TokenRatio(None)
_MDPO = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.05), (1.5, 0.5), (2.0, 0.5), (0.5, 0.5))


def disco(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["mask"] > 0
    if config["function"] == "compute_policy_loss_grpo":
        objective = PolicyObjective(_PLAIN, Clip(config["cliprange"], config["cliprange"]), aggregation=SequenceMeanTokenMean())
        found = call(inputs["log_probs"], inputs["advantages"], mask, objective, old_log_probs=inputs["old_log_probs"])
        return Answer({"loss": found.loss, "grad_log_probs": found.gradient})
    groups = inputs["group"][:, None].expand(mask.shape).contiguous()
    estimator = Reversed(K1()) if config["kl_type"] == "kl" else Reversed(K3(None))
    tau = config["tau"] if "discob" not in config["function"] else None
    contrast = GroupContrast(tau, ratio_score=config["score"] == "mean_ratio")
    penalty = HingeKL(config["beta"], config["delta"], estimator)
    objective = PolicyObjective(_PLAIN, contrast, penalty, aggregation=SequenceMeanTokenMean())
    found = call(
        inputs["log_probs"],
        torch.zeros_like(inputs["log_probs"]),
        mask,
        objective,
        old_log_probs=inputs["old_log_probs"],
        extras={"group_ids": groups, "correct": (inputs["rewards"] > 0)[:, None].expand(mask.shape).contiguous()},
        denominator=float(inputs["group"].unique().numel()),
    )
    outputs = {"grad_log_probs": found.gradient}
    if tau is None:  # the released log-mean-exp has another value
        outputs["loss"] = found.loss
    return Answer(outputs)


def entropy_cov(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    aggregation = {"token-mean": TokenMean(), "seq-mean-token-mean": SequenceMeanTokenMean(), "seq-mean-token-sum": SequenceMeanTokenSum()}
    penalty, extras, surrogate = None, {}, Unclipped()
    match config["function"]:
        case "compute_policy_loss_kl_cov":
            tokens = float(inputs["mask"].sum())
            top = CovarianceTop(min(config["k_percent"], tokens) / 100)  # the released code never takes more percents than there are tokens
            penalty = KLPenalty(config["ppo_kl_coef"], AbsoluteKL(), anchor="old", weighting=top)
        case "compute_policy_loss_clip_cov":  # the draw is torch's there: the tokens that it kept are taken as recorded
            surrogate = Weighted(Clip(config["cliprange_low"], config["cliprange_high"]), TokenWeights())
            extras["weights"] = case.outputs["keep"]
        case "compute_policy_loss":
            surrogate = Clip(config["cliprange_low"], config["cliprange_high"])
    objective = PolicyObjective(_PLAIN, surrogate, penalty, aggregation=aggregation[config["loss_agg_mode"]])
    rows = inputs["mask"].sum(1).gt(0).sum().clamp(min=1)
    found = call(
        inputs["log_probs"],
        inputs["advantages"],
        inputs["mask"] > 0,
        objective,
        old_log_probs=inputs["old_log_probs"],
        extras=extras,
        denominator=None if config["loss_agg_mode"] == "token-mean" else rows,
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def nft(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "ratio_type" not in config:
        raise Unsupported("an advantage")
    mask, by_token = inputs["mask"] > 0, config["ratio_type"] == "token"
    surrogate = NFT(config["neg_weight"], config["clamp_positive"], config["clamp_negative"], config["normalize"])
    ratio = TokenRatio((float("-inf"), 10.0)) if by_token else SequenceProductRatio((float("-inf"), 10.0))
    spread = lambda value: value[:, None].expand(mask.shape).contiguous()  # noqa: E731
    found = call(
        inputs["log_probs"],
        torch.zeros_like(inputs["log_probs"]),
        mask,
        PolicyObjective(ratio, surrogate, aggregation=TokenSum() if by_token else SequenceMeanTokenMean()),
        old_log_probs=inputs["old_log_probs"],
        extras={"correct": spread(inputs["correct"]), "correct_rate": spread(inputs["correct_rate"])},
        denominator=config["token_divisor"] if by_token else 1.0,
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def spo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] != "_compute_actor_loss":
        raise Unsupported(f"no blocks for {config['function']!r}")
    bound, mask = config["log_ratio_clamp"], inputs["mask"].bool()
    surrogate, gate = Clip(config["cliprange"], config["cliprange"]), None
    if config["use_prob_mask"]:  # the mean is over the tokens kept
        gate = OldProbability(config["prob_mask_threshold"])
        surrogate = Weighted(surrogate, Normalized(gate))
    penalty = None
    if config["kl_penalty_loss_type"] is not None:
        estimator = {"kl": K1(10.0), "abs": AbsoluteKL(), "mse": K2(10.0), "control_variate": K3(10.0)}[config["kl_penalty_loss_type"]]
        penalty = KLPenalty(
            config["kl_coef"],
            estimator,
            weighting=gate,
            aggregation=SequenceMeanTokenSum(),
            denominator=float(mask.shape[0]),
            clip=(config["kl_penalty_loss_clip_min"], config["kl_penalty_loss_clip_max"]),
        )
    objective = PolicyObjective(TokenRatio(bound), surrogate, penalty, RatioGuard(config["ratio_threshold"], bound))
    found = call(
        inputs["log_probs"],
        inputs["advantages"],
        mask,
        objective,
        old_log_probs=inputs["old_log_probs"],
        ref_log_probs=inputs["ref_log_probs"],
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def unigrpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "mask" not in inputs:
        raise Unsupported("an advantage")
    from_logits = "logits" in inputs
    log_probs, logits = inputs.get("log_probs"), None
    if from_logits:
        logits = inputs["logits"].clone().requires_grad_()
        log_probs = torch.log_softmax(logits, -1).gather(-1, inputs["labels"].clamp(min=0)[..., None])[..., 0]
    mask = inputs["mask"].bool()
    estimator = K3(None) if config["use_kl_estimator_k3"] else K1()
    own = SequenceMeanTokenSum() if from_logits else None
    penalty = KLPenalty(config["beta"], estimator, anchor="old", aggregation=own)
    aggregation, denominator = SequenceMeanTokenMean(), float(mask.shape[0])
    if not from_logits:  # this trainer divides by the full length
        aggregation, denominator = TokenSum(), denominator * config["L1"]
    objective = PolicyObjective(_PLAIN, Clip(config["eps"], config["eps"]), penalty, aggregation=aggregation)
    found = call(log_probs, inputs["advantages"][:, None], mask, objective, old_log_probs=inputs["old_log_probs"], denominator=denominator)
    outputs = {"loss": found.loss}
    if from_logits:
        log_probs.backward(found.gradient)
        outputs |= {"grad_logits": logits.grad, "log_probs": log_probs.detach()}
    else:
        outputs["grad_log_probs"] = found.gradient
    return Answer(outputs)


def dancegrpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] == "train_grpo_hunyuan":
        return _two_rewards(config, inputs)
    if config["function"] != "train_one_step loss":
        raise Unsupported(f"no loss: {config['function']!r}")
    advantages = inputs["advantages"].clamp(-config["adv_clip_max"], config["adv_clip_max"])
    steps = inputs["log_probs"].numel() * config["gradient_accumulation_steps"] * config["train_timesteps"]
    objective = PolicyObjective(_PLAIN, Clip(config["clip_range"], config["clip_range"]))
    found = call(
        inputs["log_probs"],
        advantages,
        torch.ones_like(advantages, dtype=torch.bool),
        objective,
        old_log_probs=inputs["old_log_probs"],
        denominator=float(steps),
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def _two_rewards(config, inputs):
    """Each reward has advantages and a clipped loss of its own; the coefficients weigh the losses."""
    rows, outputs = inputs["log_probs"].shape[0], {}
    group = torch.arange(rows) // config["num_generations"]
    total, gradient = 0.0, 0.0
    for name in ("vq", "mq"):
        bound = config["adv_clip_max"]
        advantages = group_advantages(inputs[f"{name}_rewards"], group, scale="std", statistics=DANCE)
        objective = PolicyObjective(_PLAIN, Clip(config["clip_range"], config["clip_range"]))
        mask = torch.ones(rows, dtype=torch.bool)
        found = call(inputs["log_probs"], advantages.clamp(-bound, bound), mask, objective, old_log_probs=inputs["old_log_probs"])
        outputs |= {f"{name}_advantages": advantages, f"{name}_loss": found.loss}
        total, gradient = total + config[f"{name}_coef"] * found.loss, gradient + config[f"{name}_coef"] * found.gradient
    return Answer(outputs | {"loss": total, "grad_log_probs": gradient})


def one_shot_rlvr(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    logits = inputs["logits"].clone().requires_grad_()
    log_p = torch.log_softmax(logits, -1)
    log_probs, entropy = log_p.gather(-1, inputs["token_ids"][..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    surrogate = SurrogateSum((Clip(config["cliprange"], config["cliprange"]),), (config["pg_loss_coeff"],))
    penalty = KLPenalty(config["kl_loss_coef"], K3(None, 10.0))
    rows = group_advantages(inputs["token_level_rewards"].sum(-1), inputs["group"], scale="std", statistics=VERL)
    advantages = torch.where(inputs["mask"] > 0, rows[:, None], 0)
    objective = PolicyObjective(_PLAIN, surrogate, penalty, entropy_bonus=EntropyBonus(config["entropy_coeff"]))
    found = call(
        log_probs,
        advantages,
        inputs["mask"] > 0,
        objective,
        old_log_probs=inputs["old_log_probs"],
        ref_log_probs=inputs["ref_log_probs"],
        entropy=entropy,
    )
    torch.autograd.backward([log_probs, entropy], [found.gradient, found.entropy_gradient])
    return Answer({"loss": found.loss, "grad_logits": logits.grad, "advantages": advantages})


def ppo_max(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] != "criterion":
        raise Unsupported("no loss")
    logits, mask = inputs["logits"].clone().requires_grad_(), inputs["loss_mask"][:, 1:].bool()
    log_p = torch.log_softmax(logits[:, :-1], -1)
    log_probs = log_p.gather(-1, inputs["token_ids"][:, 1:, None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    clip = config["pg_clip"] if config["use_policy_loss_clip"] else None
    given = {"old_log_probs": inputs["old_log_probs"], "entropy": entropy}
    surrogate = Unclipped() if clip is None else Clip(clip, clip)
    advantages = case.outputs["advantages_used"]
    policy = call(log_probs, advantages, mask, PolicyObjective(_PLAIN, surrogate), **given)
    outputs = {"pg_loss": policy.loss, "log_probs": torch.where(mask, log_probs.detach(), 0), "advantages_used": advantages}
    gradients = [policy.gradient, torch.zeros_like(entropy)]
    if config["use_entropy_loss"]:
        target = EntropyTarget(config["entropy_loss_weight"], config["entropy_clip"])
        objective = PolicyObjective(_PLAIN, NoSurrogate(), entropy_bonus=target)
        found = call(log_probs, advantages, mask, objective, **given)
        outputs["entro_loss"], gradients[1] = found.loss / config["entropy_loss_weight"], found.entropy_gradient
    torch.autograd.backward([log_probs, entropy], gradients)
    outputs["grad_logits"] = logits.grad
    if "ptx_logits" in inputs:
        outputs["ppo_pretrain_loss"], outputs["grad_ptx_logits"] = _pretraining(config, inputs)
    return Answer(outputs)


def _pretraining(config, inputs):
    logits, mask = inputs["ptx_logits"].clone().requires_grad_(), inputs["ptx_mask"][:, 1:].bool()
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, inputs["ptx_token_ids"][:, 1:, None])[..., 0]
    found = call(log_probs, torch.zeros_like(log_probs), mask, PolicyObjective(NoRatio(), NegativeLogLikelihood()))
    log_probs.backward(found.gradient * config["ppo_pretrain_loss_weight"])
    return found.loss, logits.grad


def ton(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "grad_log_probs" not in case.outputs:
        raise Unsupported("a reward")
    penalty = KLPenalty(config["beta"], K3(None))
    objective = PolicyObjective(_PLAIN, Unclipped(), penalty, aggregation=SequenceMeanTokenMean())
    mask = inputs["mask"] > 0
    advantages = group_advantages(inputs["rewards"], torch.arange(mask.shape[0]) // config["num_generations"], scale="std", statistics=TRL)
    found = call(
        inputs["log_probs"],
        advantages[:, None],
        mask,
        objective,
        ref_log_probs=inputs["ref_log_probs"],
        denominator=float(mask.shape[0]),
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient, "advantages": advantages})


def mdpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config.get("method") != "closedreverse-KL" or "logits" not in inputs:
        raise Unsupported("needs a divergence over the whole vocabulary, a distribution that is no vocabulary, or is a schedule")
    logits = inputs["logits"].clone().requires_grad_()
    log_probs = torch.log_softmax(logits, -1).gather(-1, inputs["actions"][:, None])[:, 0]
    mask = torch.ones_like(inputs["advantages"], dtype=torch.bool)
    found = call(log_probs, inputs["advantages"], mask, PolicyObjective(NoRatio(), AdvantageWeightedNLL()))
    log_probs.backward(found.gradient)
    return Answer({"loss": found.loss, "grad": logits.grad})


def props(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    surrogate = Unclipped()
    if config["function"] == "props_update":
        surrogate = Clip(config["props_clip_coef"], config["props_clip_coef"])
    minus = -torch.ones_like(inputs["log_probs"])
    mask = torch.ones_like(minus, dtype=torch.bool)
    found = call(inputs["log_probs"], minus, mask, PolicyObjective(_PLAIN, surrogate), old_log_probs=inputs["target_log_probs"])
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


_FLUX = ("sde=True/eta=0.3/index=0", "sde=True/eta=0.3/index=2", "sde=False/eta=0.3/index=1", "sde=True/eta=0.7/index=1")
_REPORT = "the authors' own report beside the loss"
_VALUE = "the lse in the released code is S / sg(S), with the right gradient and another value"
_CRITIC = "the loss of a critic, and what is reported of it"
_RAISES = "the authors' code fails there"
_EXACT = "needs the divergence over the whole vocabulary; from the sampled tokens KLPenalty(..., anchor='old') estimates it"
_NOT_TOKENS = "no loss over tokens of a vocabulary"

ADAPTERS = {
    "disco": Adapter(
        disco,
        excluded={"disco_Lratio/as_dispatched_by_dp_actor": _RAISES},
        outside={"loss": _VALUE, **dict.fromkeys(("clipfrac", "ppo_kl", "constraint", "scores", "neg_softmax_weights_*"), _REPORT)},
    ),
    "entropy_cov": Adapter(
        entropy_cov,
        outside=dict.fromkeys(("ppo_kl*", "cov*", "selected_flat_index", "clipfrac", "keep", "clip_num", "clipped_by_ppo"), _REPORT),
    ),
    "mdpo": Adapter(
        mdpo,
        excluded={
            **dict.fromkeys([f"multistep-SGD/cat/q={q}/t={t}" for q, t in _MDPO], _EXACT),
            **dict.fromkeys([f"multistep-SGD/gauss/q={q}/t={t}" for q, t in ((1.0, 0.5), (1.5, 0.3))], _NOT_TOKENS),
            **dict.fromkeys(("closedreverse-KL/gauss/q=1.0/t=0.5", "schedule"), _NOT_TOKENS),
        },
        outside=dict.fromkeys(("optimgain", "meankl", "ratio", "value_loss"), _REPORT),
    ),
    "one_shot_rlvr": Adapter(one_shot_rlvr, outside=dict.fromkeys(("pg_loss", "entropy", "kl", "ppo_kl", "clipfrac"), _REPORT)),
    "props": Adapter(props, outside=dict.fromkeys(("approx_kl", "clipfrac"), _REPORT)),
    "ton": Adapter(ton, excluded=dict.fromkeys(("rewards/math", "rewards/gui"), "reads text"), outside={"per_token_kl": _REPORT}),
}

# Files that also hold advantages: the adapter of their losses.
PARTS = {
    "dancegrpo": Adapter(dancegrpo, excluded=dict.fromkeys([f"flux_step/{name}" for name in _FLUX], _NOT_TOKENS)),
    "nft": Adapter(
        nft,
        excluded={f"sequence/normalize={n}/fails": _RAISES for n in (1, 2)},
        outside=dict.fromkeys(("per_element_loss", "positive_loss", "negative_loss", "ppo_kl"), _REPORT),
    ),
    "ppo_max": Adapter(
        ppo_max,
        outside={
            **dict.fromkeys(("loss", "grad_values", "vf_loss", "vf_clip", "values", "values_clipped", "returns"), _CRITIC),
            **dict.fromkeys(("pg_clip", "approx_kl", "advantages", "ratio", "ppl", "ppl_policy0", "token_acc"), _REPORT),
        },
    ),
    "spo": Adapter(
        spo,
        excluded={f"dvo/{n}": "regresses values on log-probs, and is no policy loss" for n in range(3)},
        outside=dict.fromkeys(("skipped", "action_mask", "ref_kl", "actor/*"), _REPORT),
    ),
    "unigrpo_dllm": Adapter(unigrpo, outside=dict.fromkeys(("policy_loss", "kl_loss"), _REPORT)),
}
