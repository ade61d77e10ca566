"""Losses by name: TRL's A*-PO and TPO, Trinity-RFT's policy losses, slime's sequence mask. The answers are the recipes' objectives."""

import dataclasses

import torch

from gigpo_fast import advantage
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import (
    NegativeLogLikelihood,
    NoRatio,
    OffPolicySequenceMask,
    PolicyObjective,
    SequenceMeanTokenMean,
    TokenMean,
    TokenSum,
    Weighted,
)
from gigpo_fast.pairwise import Hinge, PairwiseObjective, Score, Square, halves, pairwise_loss, response_loss, sequence_log_probs
from gigpo_fast.recipes import recipe

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .policy import call
from .tensors import Case


def trl(case: Case) -> Answer:
    kind = case.name.split("/")[0]
    return {"a2po_value": _a2po_value, "a2po_loss": _a2po, "tpo": _tpo}[kind](case)


def _a2po_value(case: Case) -> Answer:
    samples = case.inputs["rewards"]
    prompts = torch.arange(samples.shape[0])[:, None].expand(samples.shape)
    found = advantage.soft_values(samples.flatten(), prompts.flatten(), temperature=case.config["beta1"])
    return Answer({"v_star": found.view(samples.shape)[:, 0]})


def _a2po(case: Case) -> Answer:
    inputs, beta = case.inputs, case.config["beta2"]
    log_probs, mask = inputs["log_probs"].clone().requires_grad_(), inputs["mask"]
    policy, ref = sequence_log_probs(log_probs, mask).log_probs, sequence_log_probs(inputs["ref_log_probs"], mask).log_probs
    targets = inputs["rewards"] - inputs["v_star"]
    everything = torch.ones(mask.shape[0], dtype=torch.bool)
    found = response_loss(policy, everything, ref_log_probs=ref, targets=targets, objective=recipe("a_star_po", beta=beta).objective)
    found.loss.backward()
    reward = found.metrics_as_floats()["reward_chosen"]
    outputs = {"loss": found.loss, "grad_log_probs": log_probs.grad, "implicit_reward_mean": reward, "advantage_mean": targets.mean()}
    return Answer(outputs, {"implicit_reward_mean": torch.tensor(beta * 1e-5)})


def _tpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    logits, ids, mask = inputs["logits"].clone().requires_grad_(), inputs["input_ids"][:, 1:], inputs["shifted_mask"]
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[..., None])[..., 0]
    rows = ids.shape[0] // len(config["branches"]) * 2
    found = sequence_log_probs(log_probs[:rows], mask[:rows])
    kind, given = config["loss_type"], {"beta": config["beta"], "label_smoothing": config["label_smoothing"]}
    if kind == "sigmoid":
        made = recipe("tpo", **given, coefficient=config["tpo_alpha"])
    else:
        made = recipe("tpo_length", **given, margin=config["tpo_l_gamma"], coefficient=config["tpo_alpha"])
    objective = made.objective
    if kind == "ipo":
        objective = PairwiseObjective(Square(1 / (2 * config["beta"])), objective.score, 1.0)
    elif kind == "hinge":
        objective = PairwiseObjective(Hinge(), Score(0.0), config["beta"])
    lengths = found.lengths if objective.needs_lengths else None
    loss = pairwise_loss(found.log_probs, halves(rows), lengths=lengths, objective=objective).loss
    if rows < ids.shape[0]:
        gold = log_probs[rows:]
        loss = loss + policy_loss(gold, torch.zeros_like(gold), mask[rows:], objective=made.second).loss
    loss.backward()
    return Answer({"loss": loss.detach(), "grad_logits": logits.grad})


def opsm(case: Case) -> Answer:
    inputs = case.inputs
    if "set_ids" in inputs:
        raise Unsupported("kept sets")
    mask = inputs["mask"].bool()
    objective = PolicyObjective(
        NoRatio(), Weighted(NegativeLogLikelihood(), OffPolicySequenceMask(case.config["opsm_delta"], old=True)), aggregation=TokenSum()
    )
    found = call(inputs["log_probs"], inputs["advantages"], mask, objective, old_log_probs=inputs["old_log_probs"])
    return Answer({"keep": -found.gradient}, {"keep": beyond(mask)})


def trinity(case: Case) -> Answer:
    return {"opmd": _opmd}[case.name.split("/")[0]](case)


def _opmd(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    aggregation = {"token-mean": TokenMean(), "seq-mean-token-mean": SequenceMeanTokenMean()}[config["loss_agg_mode"]]
    objective = dataclasses.replace(recipe("opmd", tau=config["tau"]).objective, aggregation=aggregation)
    rows = None if config["loss_agg_mode"] == "token-mean" else float(inputs["mask"].shape[0])  # the peer counts empty rows too
    found = call(inputs["log_probs"], inputs["advantages"], inputs["mask"], objective, denominator=rows)
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def trinity_advantages(case: Case) -> Answer:
    kind, scores, group, config = case.name.split("/")[0], case.inputs["rewards"], case.inputs.get("groups"), case.config
    if kind == "asymre":
        found = recipe("asymre", shift=config["baseline_shift"]).advantages(scores, group)
    elif kind == "opmd":
        found = recipe("opmd", temperature=config.get("tau")).advantages(scores, group)
    else:
        raise Unsupported(f"no answer for {kind!r}")
    return Answer({"advantages": found})


def rllm(case: Case) -> Answer:
    if not case.name.startswith("rllm/prpo/"):
        raise Unsupported("another estimator")
    sizes = [len(rewards) for rewards in case.inputs["rewards"]]
    scores = torch.tensor(sum(case.inputs["rewards"], []), dtype=torch.float64)
    found = recipe("prpo").advantages(scores, torch.zeros(len(scores), dtype=torch.int64))
    if len(set(sizes)) == 1:
        return Answer({"advantages": found.view(len(sizes), -1)})
    return Answer({f"advantages.{place}": part for place, part in enumerate(found.split(sizes))})


ADAPTERS = {
    "trl_a2po_tpo": Adapter(trl, {"implicit_reward_mean": "a mean of float32 differences of log-probs a hundred times their size"}),
    "slime_opsm_kept_sets": Adapter(opsm, {"keep": REASON}, outside={"clipfrac_sum": "the peer's own metric"}),
    "trinity_loss": Adapter(trinity),
    "trinity_advantage": Adapter(trinity_advantages),
    "rllm_art": Adapter(rllm),
}
