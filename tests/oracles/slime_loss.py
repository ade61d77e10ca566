"""slime's policy_loss_function (packed tokens) and its KL estimators."""

import torch

from gigpo_fast import validation
from gigpo_fast.objective import (
    CISPO,
    K1,
    K2,
    K3,
    Clip,
    EntropyBonus,
    KLPenalty,
    NoSurrogate,
    OffPolicySequenceMask,
    PolicyObjective,
    Product,
    RolloutCorrection,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenLevel,
    TokenRatio,
    TokenSum,
    Weighted,
)

from .adapter import Adapter, Answer
from .policy import call
from .tensors import Case


def answer(case: Case) -> Answer:
    if case.config.get("function") != "compute_approx_kl":
        return _policy_loss(case)
    with validation("metadata"):  # one number each, drawn around 0: no log-probs, and as such refused
        return _approx_kl(case)


def _policy_loss(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    lengths = torch.tensor(inputs["lengths"])
    samples = torch.arange(len(lengths))
    if config["siblings_share_denominator"]:  # samples that fall short of their denominator share it with the next: one sequence
        own = torch.stack([part.sum() for part in inputs["mask"].split(inputs["lengths"])])
        follows = (own < inputs["sample_denominators"])[1:] & (own < inputs["sample_denominators"])[:-1]
        samples = torch.cat([samples[:1], samples[1:] - follows.cumsum(0)])
    sequence_ids = samples.repeat_interleave(lengths)
    mask = inputs["mask"] > 0
    old = inputs["rollout_log_probs"] if config["use_rollout_logprobs"] else inputs["old_log_probs"]
    kind, masks = config["advantage_estimator"], []
    ratio = SequenceRatio(None) if kind == "gspo" else TokenRatio(None)
    surrogate = Clip(config["eps_clip"], config["eps_clip_high"], dual=config["eps_clip_c"])
    if kind == "cispo":
        surrogate = CISPO(config["eps_clip"], config["eps_clip_high"])
    if config["use_opsm"]:
        masks.append(OffPolicySequenceMask(config["opsm_delta"], old=True))
    if config["use_tis"]:
        truncate = config["tis_function"] == "vanilla_tis_function"
        masks.append(RolloutCorrection(TokenLevel(), config["tis_clip_low"], config["tis_clip"], truncate=truncate, log_ratio_clip=None))
    if masks:
        surrogate = Weighted(surrogate, Product(tuple(masks)))
    unbiased = TokenRatio(None) if config["use_unbiased_kl"] else False  # the token's ratio, whatever the policy's is
    penalty = _penalty(config["kl_loss_type"], config["kl_loss_coef"], unbiased) if config["use_kl_loss"] else None
    bonus = EntropyBonus(config["entropy_coef"]) if config["entropy_coef"] else None
    per_token = config["calculate_per_token_loss"]
    objective = PolicyObjective(ratio, surrogate, penalty, None, bonus, aggregation=TokenSum() if per_token else SequenceMeanTokenMean())
    found = call(
        inputs["log_probs"],
        inputs["advantages"],
        mask,
        objective,
        old_log_probs=old,
        ref_log_probs=inputs["ref_log_probs"],
        entropy=inputs["entropy"],
        extras={"rollout_log_probs": inputs["rollout_log_probs"]},
        sequence_ids=sequence_ids,
        denominator=1.0,  # slime sums over samples
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def _penalty(kind, coefficient, unbiased):
    clipped = kind == "low_var_kl"
    estimator = {"k1": K1(), "k2": K2()}.get(kind, K3(input_clip=None))
    return KLPenalty(coefficient, estimator, importance_weighted=unbiased, clip=10.0 if clipped else None)


def _approx_kl(case: Case) -> Answer:
    inputs = case.inputs
    penalty = _penalty(case.config["kl_loss_type"], 1.0, case.config["importance_ratio"] is not None)
    shape = inputs["log_probs"].shape
    objective = PolicyObjective(TokenRatio(None), NoSurrogate(), penalty, aggregation=TokenSum())
    keywords = {"old_log_probs": inputs["old_log_probs"], "ref_log_probs": inputs["ref_log_probs"]}
    mask, zeros = torch.ones(shape, dtype=torch.bool), torch.zeros(shape)
    found = call(inputs["log_probs"], zeros, mask, objective, **keywords)
    each = torch.stack([call(inputs["log_probs"], zeros, one, objective, **keywords).loss for one in _single_tokens(shape)])
    return Answer({"kl": each.view(shape), "grad_log_probs_of_sum": found.gradient})


def _single_tokens(shape):
    for index in range(shape.numel()):
        yield (torch.arange(shape.numel()) == index).view(shape)


_PARTS = "slime's own report, summed over samples as its loss is: parts of the loss, and distances between engine and trainer"
_NAMES = ("pg_loss", "kl_loss", "entropy_loss", "ppo_kl", "pg_clipfrac", "ois", "tis", "tis_clipfrac", "tis_abs", "opsm_clipfrac")
ADAPTER = Adapter(answer, outside=dict.fromkeys((*_NAMES, "train_rollout_logprob_abs_diff"), _PARTS))
