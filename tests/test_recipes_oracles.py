"""What the papers' own code recorded, answered by whole recipes: the recipe's objective in place of the adapter's composition."""

import dataclasses
import functools
from unittest import mock

import pytest
import torch

from gigpo_fast.recipes import recipe
from tests.oracles import paper_losses, policy, runner
from tests.oracles.compare import compare
from tests.oracles.tensors import read_cases
from tests.test_oracles import ORACLES


def disco(config):
    if config.get("function", "compute_policy_loss_grpo") == "compute_policy_loss_grpo" or config["kl_type"] != "kl":
        return None
    given = {"ratio_score": config["score"] == "mean_ratio", "beta": config["beta"], "threshold": config["delta"]}
    return recipe("disco_b", **given) if "discob" in config["function"] else recipe("disco", temperature=config["tau"], **given)


def entropy_cov(config):
    if config["function"] == "compute_policy_loss_kl_cov" and config["loss_agg_mode"] == "token-mean" and config["k_percent"] <= 20:
        return recipe("kl_cov", fraction=config["k_percent"] / 100, coefficient=config["ppo_kl_coef"])
    return None


def nft(config):
    if "ratio_type" not in config:
        return None
    names = {
        "negative_weight": "neg_weight",
        "floor_positive": "clamp_positive",
        "floor_negative": "clamp_negative",
        "normalize": "normalize",
    }
    return recipe("nft" if config["ratio_type"] == "token" else "nft_sequence", **{ours: config[theirs] for ours, theirs in names.items()})


def spo(config):
    if config["function"] != "_compute_actor_loss" or not config["use_prob_mask"]:
        return None
    if config["kl_penalty_loss_type"] not in (None, "control_variate") or config["ratio_threshold"] != 10:
        return None
    coefficient = 0.0 if config["kl_penalty_loss_type"] is None else config["kl_coef"]
    return recipe("spo_chain", clip=config["cliprange"], kl_coefficient=coefficient, threshold=config["prob_mask_threshold"])


def unigrpo(config):
    if "beta" not in config or not config["use_kl_estimator_k3"]:
        return None
    if "L1" in config:
        return recipe("trado", clip=config["eps"], kl_coefficient=config["beta"])
    return recipe("unigrpo", clip=config["eps"], kl_coefficient=config["beta"], anchor="old")


def one_shot_rlvr(config):
    names = {"policy": "pg_loss_coeff", "clip": "cliprange", "kl_coefficient": "kl_loss_coef", "entropy_coefficient": "entropy_coeff"}
    return recipe("one_shot_rlvr", **{ours: config[theirs] for ours, theirs in names.items()})


def props(config):
    return recipe("props", clip=config["props_clip_coef"]) if config["function"] == "props_update" else recipe("ros")


# file: (the recipe of a case, or None where none is meant; how many cases it answers)
FILES = {
    "dancegrpo": (lambda config: recipe("dancegrpo", clip=config["clip_range"]) if "clip_range" in config else None, 6),
    "disco": (disco, 20),
    "entropy_cov": (entropy_cov, 5),
    "mdpo": (lambda config: recipe("mdpo_closed") if config.get("method") == "closedreverse-KL" else None, 1),
    "nft": (nft, 15),
    "one_shot_rlvr": (one_shot_rlvr, 6),
    "props": (props, 7),
    "spo": (spo, 3),
    "ton": (lambda config: recipe("ton", kl_coefficient=config["beta"]) if "beta" in config else None, 6),
    "unigrpo_dllm": (unigrpo, 9),
}


@pytest.mark.parametrize("file", FILES)
def test_recorded_answers(file):
    chosen, count = FILES[file]
    adapter, answered = runner.ADAPTERS[file], 0
    for case in read_cases(ORACLES / "papers" / f"{file}.json.gz", []):
        found = chosen(case.config)
        if found is None or case.name in adapter.excluded:
            continue
        used = []
        with mock.patch.object(paper_losses, "call", functools.partial(_called, found.objective, used)):
            try:
                answer = adapter.answer(case)
            except runner.Unsupported:
                continue
        if not used:
            continue
        outside = {name: value for name, value in case.outputs.items() if name in answer.outputs}
        compared = compare(answer, outside, adapter.looser)
        assert not compared.faults, (case.name, compared.faults)
        answered += 1
    assert answered == count


def _called(objective, used, log_probs, advantages, mask, composed, **keywords):
    """The adapter's call with the recipe's objective; a denominator that the composition carried is handed on."""
    used.append(objective)
    own = [penalty.denominator for penalty in composed.penalties if getattr(penalty, "denominator", None) is not None]
    if own and objective.divergence is not None:
        objective = dataclasses.replace(objective, divergence=dataclasses.replace(objective.divergence, denominator=own[0]))
    found = policy.call(log_probs, advantages, mask, objective, **keywords)
    if "entropy" in keywords and found.entropy_gradient is None:  # a coefficient of 0: no bonus at all
        found = found._replace(entropy_gradient=torch.zeros_like(keywords["entropy"]))
    return found
