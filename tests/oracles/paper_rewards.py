"""Rewards of the papers' own code, as far as they are numbers: what reads text is taken from the recorded answer, or not covered."""

import torch
from torch import Tensor

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import Whitening

from .adapter import Answer, Unsupported
from .masked import beyond
from .tensors import Case

_TEXT = "reads text; the reward functions here work on numbers"


def _numbers(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rm_ensembles(case: Case) -> Answer:
    config, scores = case.config, case.inputs["scores"]
    if config.get("function") == "get_ensemble_score":
        ddof, weight = 0, config["weight"] or 1.0  # a weight of 0 counts as none, which counts as 1
    else:
        ddof, weight = config.get("variance_ddof", 1), config["coeff"]
    answers = {"mean": reward.ensemble_mean(scores), "worst": reward.ensemble_worst(scores)}
    answers["uwo"] = reward.ensemble_uncertainty(scores, coefficient=weight, ddof=ddof)
    answers["uwo_default_coeff_1"] = reward.ensemble_uncertainty(scores, coefficient=1.0, ddof=ddof)
    if config.get("function") == "get_ensemble_score":
        chosen = answers[{"mean": "mean", "WCO": "worst", "UWO": "uwo"}[config["objective"]]]
        return Answer({"scores_ascending": chosen.sort().values})
    return Answer(answers)


def open_rs(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] != "get_cosine_scaled_reward":
        raise Unsupported(f"{config['function']} {_TEXT}")
    lengths = _numbers(inputs["lengths_in_characters"])
    correct = _numbers(case.outputs["accuracy"]) > 0.5
    wave = reward.cosine_length(
        correct,
        lengths,
        max_length=config["max_len"],
        right=(config["max_value_correct"], config["min_value_correct"]),
        wrong=(config["min_value_wrong"], config["max_value_wrong"]),
        clamp=False,
    )
    readable = torch.tensor([answer != "unparseable" for answer in inputs["solutions"]])
    one_group = torch.zeros(len(lengths), dtype=torch.int64)
    relative = reward.group_length(correct, lengths, one_group)
    return Answer({"rewards": torch.where(readable, wave, 1.0), "len_reward": relative})


def ui_r1(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] != "_add_completion_length_to_rewards":
        raise Unsupported(f"{config['function']}: {_TEXT}")
    total, lengths = _numbers(inputs["rewards"]), _numbers(inputs["lengths"])
    group = torch.arange(len(total)) // config["num_generations"]
    bonus = reward.dast_length(total == 3.0, lengths, group, slope=config["dast_a"], offset=config["dast_b"])
    return Answer({"rewards": total + bonus})


def gui_r1(case: Case) -> Answer:
    if case.config["function"] != "r1gui_compute_score":
        raise Unsupported(f"{case.config['function']} {_TEXT}")
    parts = torch.tensor([[case.outputs["accuracy"], case.outputs["format"]]], dtype=torch.float64)
    return Answer({"overall": reward.weighted_sum(parts, weights=case.config["weights"])[0]})


def pixelthink(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    match config["function"]:
        case "pixelthink_length_budget, pixelthink_length_score":
            difficulty, doubt = _numbers(inputs["difficulty"]), _numbers(inputs["uncertainty"])
            budget = reward.difficulty_budget(
                difficulty,
                doubt,
                thresholds=(config["medium_difficulty_threshold"], config["hard_difficulty_threshold"]),
                easy=config["easy_token_budget"],
                hard=config["hard_token_budget"],
                scale=config["uncertainty_budget_scale"],
            )
            score = reward.soft_length(_numbers(inputs["length"]), budget, slope=config["length_penalty_beta"])
            return Answer({"score": score})
        case "compute_uncertainty_from_logprob_dict":
            top = inputs["top_logprobs_by_rank"]
            mask = torch.tensor([[len(ranks) >= 2 for ranks in top]], dtype=torch.bool).reshape(1, len(top))
            pairs = torch.tensor([[(ranks + [0.0, 0.0])[:2] for ranks in top]], dtype=torch.float64).reshape(1, len(top), 2)
            return Answer({"uncertainty": reward.top_two_uncertainty(pairs, mask)[0]})
    parts = [case.outputs[name] for name in ("thinking_format", "segmentation_format", "iou", "box_l1", "point_l1")]
    accuracy = reward.weighted_sum(torch.tensor([parts], dtype=torch.float64))
    budget = reward.difficulty_budget(_numbers([inputs["difficulty"]]), _numbers([inputs["uncertainty"]]))
    return Answer({"reward": (accuracy * reward.soft_length(_numbers([case.outputs["length"]]), budget))[0]})


def ppo_max(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    match config["function"]:
        case "make_experiences reward scaling":
            return _scaling(case)
        case "get_advantages_and_returns":
            everywhere = torch.ones(1, len(inputs["values"]), dtype=torch.bool)
            log_probs, reference = inputs["log_probs"].unsqueeze(0), inputs["ref_log_probs"].unsqueeze(0)
            penalty = reward.kl_rewards(log_probs, reference, everywhere, coefficient=config["kl_penalty_weight"])
            rewards = penalty + reward.score_at_last_token(inputs["score"], everywhere)
            found = advantage.gae_advantages(rewards, _numbers([inputs["values"]]), everywhere, gamma=config["gamma"], lam=config["lam"])
            return Answer({"token_rewards": rewards[0], "advantages": found.advantages[0], "returns": found.returns[0]})
        case "whiten":
            mask = inputs["mask"]
            statistics = Whitening(ddof=0, eps=1e-6)
            whitened = advantage.whiten(inputs["x"], mask, keep_mean=not config["shift_mean"], statistics=statistics)
            return Answer({"whitened": whitened}, {"whitened": beyond(mask)})
    raise Unsupported(f"{config['function']} is a loss")


def _scaling(case: Case) -> Answer:
    config, outputs = case.config, {}
    state = reward.RunningMoments.empty()
    clip = config["reward_clip"] if config["use_reward_clip"] else None
    for place, batch in enumerate(case.inputs["batches"]):
        found = {}
        if config["use_reward_scaling"]:
            scaled, state = reward.running_scale(batch, state, center=config["use_reward_norm"], clip=clip)
            std = (state.variance * state.count / (state.count - 1)).sqrt()
            found = {"running_mean": state.mean, "running_std": std, "running_var": state.variance, "count": state.count}
        else:
            scaled = batch if clip is None else batch.clamp(-clip, clip)
            found = {name: case.outputs.get(f"batches.{place}.{name}") for name in ("running_mean", "running_std", "running_var", "count")}
        outputs |= {f"batches.{place}.{name}": value for name, value in {"rewards": scaled, **found}.items()}
    return Answer(outputs)
