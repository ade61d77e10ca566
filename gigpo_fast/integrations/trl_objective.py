"""What a GRPOConfig says, in the engine's blocks: objective, denominator, extras; and what keeps a step from the fused pass."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..objective import (
    K3,
    SAPO,
    VESPO,
    CISPOAbsolute,
    Clip,
    KLPenalty,
    OffPolicySequenceMask,
    PolicyObjective,
    Ratio,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceProductRatio,
    SequenceRatio,
    Surrogate,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TokenWeights,
    Weighted,
)
from ..objective.aggregation import Aggregation

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
BY_TOKENS = ("cispo", "dapo", "vespo")  # divided by the tokens of the optimiser step, all others by rows or by their own tokens
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")


@dataclasses.dataclass(frozen=True)
class ReportedKL(KLPenalty):
    """KLPenalty that reports what it adds, importance weight included, divided by its coefficient: TRL's metric "kl"."""

    def loss(self, batch: TokenBatch, log_ratio: Tensor, usable: TokenBatch) -> tuple[Tensor, Tensor]:
        value, _ = super().loss(batch, log_ratio, usable)
        return value, value / self.coefficient


@dataclasses.dataclass(frozen=True)
class SampledSequenceMask(OffPolicySequenceMask):
    """OffPolicySequenceMask in which a token that the sampler could not score (NaN) counts as no drift, as in TRL."""

    def factor(self, batch: TokenBatch) -> Tensor:
        drift = (batch.extras["rollout_log_probs"] - batch.log_probs.detach()).nan_to_num(nan=0.0)
        return ((batch.advantages >= 0) | (batch.sequence_means(drift) <= self.threshold)).to(drift.dtype)


def objective_of(args: Any, *, epsilon_low: float, epsilon_high: float) -> PolicyObjective:
    """The loss of a GRPOConfig up to its denominator, for any loss type of TRL 1.16."""
    level = _level(args.importance_sampling_level)
    ratio, surrogate = level, _surrogate(args, epsilon_low, epsilon_high)
    if args.loss_type == "vespo":
        ratio = SequenceProductRatio((math.log(1e-8), 20.0), token_clip=20.0)
    if args.off_policy_mask_threshold is not None:
        surrogate = Weighted(surrogate, SampledSequenceMask(args.off_policy_mask_threshold))
    if corrects_sampler(args):  # as in TRL, the penalty is not weighted
        surrogate = Weighted(surrogate, TokenWeights())
    penalty = None
    if args.beta:
        weighted = (level if ratio is not level else True) if args.use_bias_correction_kl else False
        penalty = ReportedKL(args.beta, K3(input_clip=None), importance_weighted=weighted)
    return PolicyObjective(ratio, surrogate, penalty, aggregation=_aggregation(args))


def denominator_of(loss_type: str, mask: Tensor, tokens_of_step: Tensor, accumulation: float) -> Tensor:
    """0-dim: what TRL divides the sum over this micro-batch by. `tokens_of_step` are those of a whole optimiser step on one process."""
    if loss_type in BY_TOKENS:
        return tokens_of_step
    count = mask.sum().clamp(min=1) if loss_type == "bnpo" else mask.new_tensor(mask.shape[0], dtype=torch.int64)
    return count * float(accumulation)  # rows without a token count too, in TRL


def extras_of(objective: PolicyObjective, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that the objective reads beside the usual ones, by the names of TRL's batch."""
    found, shape = {}, inputs["completion_ids"].shape
    if "weights" in objective.reads:
        found["weights"] = inputs["importance_sampling_ratio"].expand(shape)  # (B, 1) for the modes of whole sequences
    if "rollout_log_probs" in objective.reads:
        sampled = inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps"))
        if sampled is None:  # on-policy there is no drift: NaN says so
            sampled = torch.full(shape, float("nan"), device=inputs["completion_ids"].device, dtype=torch.float32)
        found["rollout_log_probs"] = sampled
    return found


def corrects_sampler(args: Any) -> bool:
    """Whether TRL weighs tokens by the trained policy's probability over vLLM's; then every batch also has old log-probs."""
    return bool(args.use_vllm and args.vllm_importance_sampling_correction)


def why_not_fused(args: Any, *, row_metrics: bool) -> str | None:
    """What makes the fused pass impossible for this config, in words; None if nothing does.

    Such steps take TRL's own formula over `linear_token_log_probs`: the same numbers, 8NVH instead of 6NVH.
    """
    if args.entropy_coef or args.use_adaptive_entropy:
        return "the entropy bonus is averaged over other tokens than the policy term"
    if args.top_entropy_quantile < 1.0:
        return "top_entropy_quantile < 1 needs the entropy of every token on every process before the loss"
    corrected = corrects_sampler(args)
    if args.loss_type == "vespo" and corrected:
        return "vespo takes vllm_importance_sampling_correction into the ratio of the whole row, tokens of the environment included"
    off_policy = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations)
    if row_metrics and (off_policy or corrected):
        what = "with vllm_importance_sampling_correction" if corrected else "off-policy"
        return f"{what}, clip_ratio/low_min and high_max need the log-prob of every token; row_metrics=False leaves such metrics out"
    return None


def check_loss_type(function: str, loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        checks.fail(function, "args.loss_type", f"one of {LOSS_TYPES}", loss_type, "use GRPOTrainer for it, or compose a PolicyObjective")


def _level(name: str) -> Ratio:
    if name not in ("token", "sequence"):
        checks.fail("FusedGRPOTrainer", "args.importance_sampling_level", '"token" or "sequence"', name, "see GRPOConfig")
    return SequenceRatio(None) if name == "sequence" else TokenRatio(None)


def _surrogate(args: Any, low: float, high: float) -> Surrogate:
    match args.loss_type:
        case "cispo":
            return CISPOAbsolute(high)
        case "sapo":
            return SAPO(args.sapo_temperature_pos, args.sapo_temperature_neg)
        case "vespo":
            return VESPO(args.vespo_k_pos, args.vespo_lambda_pos, args.vespo_k_neg, args.vespo_lambda_neg)
    return Clip(low, high, ceiling=args.delta)


def _aggregation(args: Any) -> Aggregation:
    match args.loss_type:
        case "grpo" | "sapo":
            return SequenceMeanTokenMean()
        case "dr_grpo":
            return SequenceMeanTokenSumNorm(args.max_completion_length)
        case "luspo":
            return SequenceMeanTokenSum()
    return TokenMean()
