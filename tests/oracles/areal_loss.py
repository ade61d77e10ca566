"""AReaL's grpo_loss_fn: PPO, GSPO and SAPO, decoupled from the behaviour policy with rejection, M2PO, and joint distillation."""

import torch

from gigpo_fast.objective import (
    K1,
    K2,
    K3,
    SAPO,
    Clip,
    Detached,
    KLPenalty,
    PolicyObjective,
    Rejection,
    RolloutCorrection,
    SecondMoment,
    SequenceMax,
    SequenceMean,
    SequenceRatio,
    Sequences,
    SequenceSum,
    SurrogateSum,
    TokenLevel,
    TokenMean,
    TokenRatio,
    Weighted,
)

from .adapter import Adapter, Answer
from .policy import call, factors
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs, mask, behave = inputs["log_probs"], inputs["mask"].bool(), inputs["behave_log_probs"]
    sequence_ids = _sequence_ids(inputs, mask)
    advantages, proximal = inputs["advantages"], inputs["proximal_log_probs"]
    by_sequence = config["importance_sampling_level"] == "sequence"
    if config["prox_logp_method"] == "loglinear":  # an approximation of its own, from the versions of the weights
        newest, versions = config["current_version"], inputs["versions"].float()
        share = torch.where(versions < 0, 0, (newest - 1 - versions) / (newest - versions)).clamp(0, 1)
        proximal = torch.lerp(behave, log_probs.detach(), share)
    surrogate = SAPO(config["sapo_tau_pos"], config["sapo_tau_neg"])
    if not config["use_sapo_loss"]:
        high = config["eps_clip"] if config["eps_clip_higher"] is None else config["eps_clip_higher"]
        surrogate = Clip(config["eps_clip"], high, dual=config["c_clip"])
    rejection, total = config["rejection_sampling"], mask.sum()
    given = {"old": proximal, "sequence_ids": sequence_ids, "rollout_log_probs": behave}
    if config["m2_threshold"] is not None:  # the tokens it drops do not count
        mask = mask & (factors(SecondMoment(config["m2_threshold"]), mask, **given) > 0)
        total = mask.sum()
    if rejection is not None and rejection["action"] == "mask":  # the tokens it drops still count
        mask = mask & (factors(_rejected(rejection), mask, **given) > 0)
    if by_sequence:  # AReaL then gives every token its sequence's mean advantage
        ids, flat = sequence_ids.reshape(-1), mask.reshape(-1)
        lengths = torch.zeros(int(ids.max()) + 1).index_add_(0, ids, flat.float())
        advantages = Sequences(ids, lengths).means(torch.where(flat, advantages.reshape(-1), 0)).view(mask.shape)
    if rejection is not None:
        surrogate = Weighted(surrogate, _weight(rejection))
    penalty = None
    if config["distill_loss_weight"] is not None:
        surrogate = SurrogateSum((surrogate,), (float(config["rl_loss_weight"]),))
        penalty = KLPenalty(config["distill_loss_weight"], K1(), anchor="teacher")
        if not config["rl_loss_weight"]:  # without a reward the divergence is the reward
            penalty = KLPenalty(config["distill_loss_weight"], Detached(K1()), importance_weighted=True, anchor="teacher")
    ratio = SequenceRatio(None) if by_sequence else TokenRatio(None)
    found = call(
        log_probs,
        advantages,
        mask,
        PolicyObjective(ratio, surrogate, penalty, aggregation=TokenMean()),
        old_log_probs=proximal,
        extras={"rollout_log_probs": behave, "teacher_log_probs": inputs["teacher_log_probs"]},
        sequence_ids=sequence_ids,
        denominator=total.clamp(min=1),
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def _sequence_ids(inputs, mask):
    if inputs["cu_seqlens"] is not None:
        lengths = inputs["cu_seqlens"].diff().long()
        return torch.arange(len(lengths)).repeat_interleave(lengths)
    return torch.arange(mask.shape[0])[:, None].expand(mask.shape).contiguous()


def _weight(rejection):
    """The weight of the proximal policy against the behaviour policy: the token's, or its sequence's geometric mean if that is judged."""
    level = SequenceMean() if rejection["level"] == "sequence" and rejection["metric"] == "ratio" else TokenLevel()
    if rejection["action"] == "clamp":
        return RolloutCorrection(level, rejection["lower"], rejection["upper"], log_ratio_clip=None)
    return RolloutCorrection(level, low=0.0, high=None, log_ratio_clip=None)


def _rejected(rejection):
    levels = {"sum": SequenceSum(), "mean": SequenceMean(), "max": SequenceMax()}
    level = TokenLevel() if rejection["level"] == "token" else levels[rejection["agg"]]
    statistic = {"ratio": None, "kl_k1": K1(), "kl_k2": K2(), "kl_k3": K3(input_clip=None)}[rejection["metric"]]
    return Rejection(statistic, level, rejection["lower"], rejection["upper"])


ADAPTER = Adapter(answer, outside={"stats.*": "reported per token, before the sum"})
