"""Liger's fused linear GRPO loss: hidden states and the head to loss and gradients.

The recorded calls passed ref_log_probs with use_ref_model=False. Liger then drops them without a word and takes the policy itself for
the reference, so that the penalty and its gradient are 0 whatever beta is. A case whose config says use_ref_model=True has a true penalty.
"""

import math
from typing import Any

import torch

from gigpo_fast import loss
from gigpo_fast.logprob import Head, linear_token_log_probs
from gigpo_fast.objective import (
    K3,
    SAPO,
    VESPO,
    Aggregation,
    CISPOAbsolute,
    Clip,
    KLPenalty,
    PolicyObjective,
    Ratio,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceProductRatio,
    SequenceRatio,
    Surrogate,
    TokenMean,
    TokenRatio,
)

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case

# Of a term with a log-prob, in Liger's answer and in ours: the token's logit, the log-sum-exp and their difference. How each falls is the machine's.
ROUNDINGS = 2 * 3


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rows = inputs["mask"].shape[0]
    aggregation, denominator = _aggregation(config, rows)
    ratio, surrogate = _policy_term(config)
    penalty = None
    if config["beta"] != 0:
        level = _level(config) if config["use_bias_correction_kl"] else False
        penalty = KLPenalty(config["beta"], K3(input_clip=None), importance_weighted=level)

    reference = None
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("hidden", "weight", "bias") if inputs[name] is not None}
    head = Head(leaves["weight"], leaves.get("bias"))
    if penalty is not None and config.get("use_ref_model", False):
        reference = inputs["ref_log_probs"]
    elif penalty is not None:
        reference = linear_token_log_probs(
            leaves["hidden"], head, inputs["token_ids"], temperature=config["temperature"]
        ).log_probs.detach()
    advantages = inputs["advantages"]
    result = loss.linear_policy_loss(
        leaves["hidden"],
        head,
        inputs["token_ids"],
        advantages if advantages.dim() == 2 else advantages[:, None].expand(inputs["mask"].shape),
        inputs["mask"].bool(),
        old_log_probs=inputs["old_log_probs"],
        ref_log_probs=reference,
        temperature=config["temperature"],
        objective=PolicyObjective(
            ratio,
            surrogate,
            penalty,
            aggregation=aggregation,
        ),
        denominator=denominator,
    )
    result.loss.backward()
    slack = {}
    if config["loss_type"] == "vespo":  # terms of both signs nearly cancel, and roundings follow the terms, not their sum
        found = linear_token_log_probs(leaves["hidden"].detach(), inputs["weight"], inputs["token_ids"], temperature=config["temperature"])
        sizes = (advantages.abs().amax() * found.log_probs.abs() * inputs["mask"]).sum() / inputs["mask"].sum()
        slack["loss"] = ROUNDINGS * sizes * torch.finfo(torch.float32).eps / 2
    return Answer({"loss": result.loss} | {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}, slack)


def _level(config: dict[str, Any]) -> Ratio:
    level = {"token": TokenRatio(None), "sequence": SequenceRatio(None)}.get(config["importance_sampling_level"])
    if level is None:
        raise Unsupported(f"no ratio for importance_sampling_level {config['importance_sampling_level']!r}")
    return level


def _policy_term(config: dict[str, Any]) -> tuple[Ratio, Surrogate]:
    """Ratio and surrogate; the temperatures of SAPO and the constants of VESPO are Liger's defaults, as the blocks' are."""
    match config["loss_type"]:
        case "cispo":
            return _level(config), CISPOAbsolute(config["epsilon_high"])
        case "sapo":
            return _level(config), SAPO()
        case "vespo":
            return SequenceProductRatio((math.log(1e-8), 20.0), token_clip=20.0), VESPO()
        case _:
            return _level(config), Clip(config["epsilon_low"], config["epsilon_high"], ceiling=config["delta"])


def _aggregation(config: dict[str, Any], rows: int) -> tuple[Aggregation, float | None]:
    """Liger counts rows without a token too; None is the number of trained tokens."""
    match config["loss_type"]:
        case "grpo":
            return SequenceMeanTokenMean(), float(rows)
        case "dr_grpo":
            return SequenceMeanTokenSumNorm(config["max_completion_length"]), float(rows)
        case "bnpo" | "dapo" | "cispo" | "vespo":
            return TokenMean(), None
        case "sapo":
            return SequenceMeanTokenMean(), float(rows)
        case "luspo":
            return SequenceMeanTokenSum(), float(rows)
        case other:
            raise Unsupported(f"no blocks for loss_type {other!r}")


_EVERYWHERE = "per token, Liger averages luspo over all positions, trained or not, each times its row's length"
ADAPTER = Adapter(
    answer,
    looser={"loss": "VESPO's terms have both signs and nearly cancel: three roundings a term in either answer, of the sum of their sizes"},
    excluded=dict.fromkeys([f"luspo/token/{draw}" for draw in range(3)], _EVERYWHERE),
    notes=(
        "cases without use_ref_model in their config were recorded with it off: Liger then ignores ref_log_probs, and its KL term is 0 whatever beta is",
    ),
)
