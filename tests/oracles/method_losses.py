"""Losses by name: TRL's A*-PO and TPO, Trinity-RFT's policy losses, slime's sequence mask. The answers are the recipes' objectives."""

import dataclasses

import torch

from gigpo_fast import advantage
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import (
    AdvantageWeight,
    Clip,
    FutureKL,
    NegativeLogLikelihood,
    NoRatio,
    OffPolicySequenceMask,
    PolicyObjective,
    Product,
    RatioWeight,
    Scheduled,
    SequenceMeanTokenMean,
    SequenceRatio,
    SurrogateSum,
    TokenMean,
    TokenRatio,
    TokenSum,
    UncertainTokens,
    WarmupCosine,
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
    return {"opmd": _opmd, "rec": _rec, "chord": _chord, "mixed": _mixed}[case.name.split("/")[0]](case)


def _rec(case: Case) -> Answer:
    config, inputs, clips = case.config, case.inputs, {"clip_low": case.config["epsilon_low"], "clip_high": case.config["epsilon_high"]}
    name = {"one-side": "rec_one_side", "two-side": "rec_two_side", "ring": "rec_ring", "gspo-one-side": "rec_sequence"}.get(config["clip_mode"])
    if name == "rec_ring":
        clips |= {"outer_low": config["epsilon_low_prime"], "outer_high": config["epsilon_high_prime"]}
    if name is None:  # no clip: a region that nothing leaves
        name, clips = "rec_two_side", {"clip_low": 1.0, "clip_high": 1e9}
    kind = {"k2": "kl_coefficient", "forward-kl": "nll_coefficient"}.get(config["regularizer"])
    penalty = {} if kind is None else {kind: config["regularizer_coef"]}
    importance = config["weight"] == ("gspo_importance_sampling" if name == "rec_sequence" else "importance_sampling")
    objective = recipe(name, **clips, **penalty, importance=importance).objective
    more = {"advantage": AdvantageWeight(config["temp"])}
    if name == "rec_sequence":
        more["importance_sampling"] = RatioWeight()  # the token's own ratio under the sequence's clip
    if config["weight"] in more:
        objective = dataclasses.replace(objective, surrogate=_times(objective.surrogate, more[config["weight"]]))
    found = call(inputs["log_probs"], inputs["advantages"], inputs["mask"], objective, old_log_probs=inputs["old_log_probs"])
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def _times(surrogate, weighting):
    if isinstance(surrogate, SurrogateSum):
        return SurrogateSum((_times(surrogate.terms[0], weighting), *surrogate.terms[1:]), surrogate.coefficients)
    return Weighted(surrogate.surrogate, Product((surrogate.weighting, weighting)))


def _chord(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "steps" in inputs:
        schedule = WarmupCosine(0.0, config["peak"], config["valley"], config["warmup"], config["decay"])
        return Answer({"mu": [schedule(step) for step in inputs["steps"]]})
    weighting = {"chord/sft_is": RatioWeight(), "chord/sft_phi": UncertainTokens()}.get(case.name)
    if weighting is None:
        raise Unsupported("a cut at a probability")
    objective = PolicyObjective(NoRatio(), Weighted(NegativeLogLikelihood(), weighting))
    zeros = torch.zeros_like(inputs["log_probs"])  # the data's own probability is 1: the ratio is the policy's
    found = call(inputs["log_probs"], zeros, inputs["mask"], objective, old_log_probs=zeros)
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


def _mixed(case: Case) -> Answer:
    config, inputs, expert = case.config, case.inputs, case.inputs["expert"]
    if "mu" in config:
        made = recipe("mix", clip=config["clip_range"], mu=config["mu"])
        own, other = made.objective, made.second
    else:
        phi = recipe("chord_phi", clip=config["clip_range"])
        steps = (config.get("mu_warmup_steps", 0), config.get("mu_decay_steps", 1))
        made = recipe("chord_mu", peak=config["mu_peak"], valley=config["mu_valley"], warmup=steps[0], decay=steps[1])
        second = phi.second if config["enable_phi_function"] else made.second
        own = Scheduled(phi.objective, made.schedules)(config["step"])
        rising = WarmupCosine(0.0, config["mu_peak"], config["mu_valley"], *steps)
        other = Scheduled(second, {"surrogate.coefficients.0": rising})(config["step"])
    rows = lambda chosen: inputs["mask"].bool() & chosen[:, None]  # noqa: E731
    given = (inputs["log_probs"], inputs["advantages"])
    parts = [call(*given, rows(~expert), own, old_log_probs=inputs["old_log_probs"]), call(*given, rows(expert), other)]
    return Answer({"loss": sum(part.loss for part in parts), "grad_log_probs": sum(part.gradient for part in parts)})


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
    elif kind == "rec":
        found = recipe("rec_one_side").advantages(scores, group)
        if config["std_normalize"]:
            found = advantage.group_advantages(scores, group, scale="std", statistics=advantage.GroupStatistics(count="row", ddof=0))
    elif kind in ("clipb", "clipv"):
        return _entropy_clip(case)
    else:
        raise Unsupported("its anchors lie across tasks")
    return Answer({"advantages": found})


def _entropy_clip(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["mask"].bool()
    statistics = advantage.GroupStatistics(count="row", zero_variance="divide")
    rows = advantage.group_advantages(inputs["rewards"], inputs["groups"], scale="std", statistics=statistics)
    made = recipe("clip_b", mu=config["mu"]) if inputs["necs"] is None else recipe("clip_v", mu=config["mu"], max_fraction=config["max_frac"])
    kept = PolicyObjective(NoRatio(), Weighted(NegativeLogLikelihood(), made.objective.surrogate.weighting), aggregation=TokenSum())
    extras = {} if inputs["necs"] is None else {"expected_discriminator": inputs["necs"]}
    tokens = torch.where(mask, rows[:, None], 0)
    found = call(inputs["log_probs"], tokens, mask, kept, entropy=inputs["entropy"], extras=extras)
    return Answer({"advantages": tokens, "mask": -found.gradient})


def rllm(case: Case) -> Answer:
    if case.name.startswith("art/"):
        return _art(case)
    if not case.name.startswith("rllm/prpo/"):
        raise Unsupported("another estimator")
    sizes = [len(rewards) for rewards in case.inputs["rewards"]]
    scores = torch.tensor(sum(case.inputs["rewards"], []), dtype=torch.float64)
    found = recipe("prpo").advantages(scores, torch.zeros(len(scores), dtype=torch.int64))
    if len(set(sizes)) == 1:
        return Answer({"advantages": found.view(len(sizes), -1)})
    return Answer({f"advantages.{place}": part for place, part in enumerate(found.split(sizes))})


def _art(case: Case) -> Answer:
    """What a token's row holds stands at the token; its log-prob one earlier, at the position that predicts it."""
    config, inputs = case.config, case.inputs
    mask = _shifted(inputs["assistant_mask_unshifted"], False)
    old, new, group = _shifted(inputs["log_probs_unshifted"], float("nan")), inputs["new_log_probs"], _shifted(inputs["group_ids_unshifted"], 0)
    old = torch.where(old.isnan(), new, old)
    level, kind = config["importance_sampling_level"], case.name.split("/")[2]
    ratio = {"token": TokenRatio(None), "sequence": SequenceRatio(None)}.get(level)
    bounds = {"high": config["max_negative_advantage_importance_sampling_weight"] - 1} if kind == "maxneg" else {}
    objective = recipe("art_average", geometric=level == "geometric_average", **bounds).objective
    if ratio is not None:
        objective = dataclasses.replace(objective, ratio=ratio)
    if kind == "ppo":
        objective = dataclasses.replace(objective, surrogate=Clip(0.2, 0.2))
    elif kind not in ("cispo", "maxneg"):
        raise Unsupported(f"the option {kind}")
    group = torch.where(mask, group, -1)
    found = call(new, _shifted(inputs["advantages_unshifted"], 0.0), mask, objective, old_log_probs=old, sequence_ids=group)
    return Answer({"loss": found.loss, "grad_new_log_probs": found.gradient})


def _shifted(value: torch.Tensor, last) -> torch.Tensor:
    return torch.cat([value[:, 1:], torch.full_like(value[:, :1], last)], 1)


def swift(case: Case) -> Answer:
    kind = case.name.split("/")[0]
    if kind not in ("fipo", "real"):
        raise Unsupported("distillation")
    return (_fipo if kind == "fipo" else _real)(case)


def _fipo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    half_life = 1 if config["fipo_gamma"] == 0.5 else int(config["fipo_decay_rate"])
    settings = {"clip_low": config["epsilon_low"], "clip_high": config["epsilon_high"], "ceiling": config["delta"], "half_life": half_life}
    settings |= {"weight_clip": config["fipo_clip_range"], "both_sides": not config["fipo_clip_high_only"], "safety": config["fipo_safety_threshold"]}
    made, mask = recipe("fipo", **settings), inputs["mask"].bool()
    extras = {"position_ids": torch.arange(mask.shape[1]).expand(mask.shape)}
    given = (inputs["log_probs"], inputs["advantages"], mask)
    found = call(*given, made.objective, old_log_probs=inputs["old_log_probs"], extras=extras)
    weighting = made.objective.surrogate.weighting
    outputs = {"loss": found.loss, "grad_log_probs": found.gradient}
    for name, each in (("weight", weighting), ("future_kl", FutureKL(half_life, None, safety=None, ratio_limit=config["delta"]))):
        likelihood = PolicyObjective(NoRatio(), Weighted(NegativeLogLikelihood(), each), aggregation=TokenSum())
        factor = -call(*given, likelihood, old_log_probs=inputs["old_log_probs"], extras=extras).gradient
        outputs[name] = factor if name == "weight" else torch.where(mask, factor, 1).log()
    return Answer(outputs, dict.fromkeys(("weight", "future_kl"), beyond(mask)))


def _real(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask = inputs["mask"].bool()
    group = torch.arange(mask.shape[0])[:, None].expand(mask.shape) // config["num_generations"]
    extras = {"group_ids": group, "correct": inputs["advantages"] > 0}
    groups = float(mask.shape[0] // config["num_generations"])
    objective = recipe("real", tau=config["real_tau"]).objective
    found = call(
        inputs["log_probs"],
        torch.zeros_like(inputs["advantages"]),
        mask,
        objective,
        old_log_probs=inputs["old_log_probs"],
        extras=extras,
        denominator=groups,
    )
    return Answer({"loss": found.loss, "grad_log_probs": found.gradient})


_TRINITY = dict.fromkeys(("pg_*", "usual/*", "expert/*", "mu"), "the peer's own metrics")
_EMPTY = dict.fromkeys(
    (f"real/emptyrow/{name}" for name in ("onesided/tau0.5", "onesided/tau0.1", "onesided/tau2.0", "signed/tau2.0")),
    "the peer takes a row without tokens for an answer with s = 0",
)
_CUT = {"chord/sft_phi_cut": "a cut at a probability, which no paper has"}
ADAPTERS = {
    "swift_losses": Adapter(swift, dict.fromkeys(("weight", "future_kl"), REASON), excluded=_EMPTY),
    "trl_a2po_tpo": Adapter(trl, {"implicit_reward_mean": "a mean of float32 differences of log-probs a hundred times their size"}),
    "slime_opsm_kept_sets": Adapter(opsm, {"keep": REASON}, outside={"clipfrac_sum": "the peer's own metric"}),
    "trinity_loss": Adapter(trinity, outside=_TRINITY, excluded=_CUT),
    "trinity_advantage": Adapter(trinity_advantages, outside=dict.fromkeys(("frac_*", "ES", "varS", "stdD"), "the peer's own metrics")),
    "rllm_art": Adapter(rllm),
}
