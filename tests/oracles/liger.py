"""Liger's fused linear GRPO loss: hidden states and the head to loss and gradients.

The recorded calls passed ref_log_probs with use_ref_model=False. Liger then drops them without a word and takes the policy itself for
the reference, so that the penalty and its gradient are 0 whatever beta is. A case whose config says use_ref_model=True has a true penalty.
"""

from typing import Any

from gigpo_fast import loss
from gigpo_fast.logprob import Head, linear_token_log_probs
from gigpo_fast.objective import (
    K3,
    Aggregation,
    Clip,
    KLPenalty,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenMean,
    TokenRatio,
)

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rows = inputs["mask"].shape[0]
    aggregation, denominator = _aggregation(config, rows)
    ratio = {"token": TokenRatio, "sequence": SequenceRatio}.get(config["importance_sampling_level"])
    if ratio is None:
        raise Unsupported(f"no ratio for importance_sampling_level {config['importance_sampling_level']!r}")
    penalty = None
    if config["beta"] != 0:
        penalty = KLPenalty(config["beta"], K3(input_clip=None), importance_weighted=config["use_bias_correction_kl"])

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
            ratio(log_ratio_clip=None),
            Clip(config["epsilon_low"], config["epsilon_high"], ceiling=config["delta"]),
            penalty,
            aggregation=aggregation,
        ),
        denominator=denominator,
    )
    result.loss.backward()
    return Answer({"loss": result.loss} | {f"grad_{name}": leaf.grad for name, leaf in leaves.items()})


def _aggregation(config: dict[str, Any], rows: int) -> tuple[Aggregation, float | None]:
    """Liger counts rows without a token too; None is the number of trained tokens."""
    match config["loss_type"]:
        case "grpo":
            return SequenceMeanTokenMean(), float(rows)
        case "dr_grpo":
            return SequenceMeanTokenSumNorm(config["max_completion_length"]), float(rows)
        case "bnpo" | "dapo":
            return TokenMean(), None
        case other:
            raise Unsupported(f"no blocks for loss_type {other!r}")


ADAPTER = Adapter(
    answer,
    notes=(
        "cases without use_ref_model in their config were recorded with it off: Liger then ignores ref_log_probs, and its KL term is 0 whatever beta is",
    ),
)
