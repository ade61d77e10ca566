"""The clipped token objective from Triton: which objectives the fused twin serves, and its results in the common form.

Elsewhere the objective runs as torch formulas on N-sized tensors. The clip family with token ratios is what agents are
trained with most, so it has one kernel from logits to value and coefficients. It is tested against the formula.
"""

import torch
from torch import Tensor

from .. import metrics
from ..objective import K3, Clip, EntropyBonus, KLPenalty, PolicyObjective, TokenBatch, TokenRatio
from ..objective.differentiate import Differentiated


def twin_options(objective: PolicyObjective) -> dict[str, float | None] | None:
    """The keywords of kernels.clip_loss.clip_rows_forward for this objective, or None if it is not of the family."""
    divergence = objective.divergence
    known = type(objective.ratio) is TokenRatio and type(objective.surrogate) is Clip and objective.weighting is None
    known &= objective.entropy_bonus is None or type(objective.entropy_bonus) is EntropyBonus
    if divergence is not None:  # a plain penalty: no anchor, mask or aggregation of its own
        known &= type(divergence) is KLPenalty and type(divergence.estimator) is K3
        known = known and divergence == KLPenalty(divergence.coefficient, divergence.estimator)
    if known and objective.surrogate.ceiling is not None:  # the kernel clips the bounded ratio: the same above the clip
        known = objective.surrogate.ceiling >= 1 + objective.surrogate.high
    if not known:
        return None
    clip, (low, high) = objective.surrogate, objective.ratio.bounds()
    options = {"low": clip.low, "high": clip.high, "dual": clip.dual, "ceiling": clip.ceiling, "log_ratio_low": low, "log_ratio_high": high}
    if divergence is not None:
        options |= {
            "kl_coefficient": divergence.coefficient,
            "kl_input_clip": divergence.estimator.input_clip,
            "kl_output_clip": divergence.estimator.output_clip,
        }
    if objective.entropy_bonus is not None:
        options["entropy_coefficient"] = objective.entropy_bonus.coefficient
    return options


def score_with_twin(
    objective: PolicyObjective,
    options: dict[str, float | None],
    logits: Tensor,
    token_ids: Tensor,
    scale: Tensor,
    tanh_in: float,
    batch: TokenBatch,
    denominator: Tensor,
) -> tuple[Tensor, Tensor, Differentiated]:
    """(lse, entropy, value and coefficients) of a chunk of logits (n, V); `batch` (n,) lacks log_probs and entropy."""
    from ..kernels import clip_loss
    from .rows_triton import config_for

    given = batch.advantages, batch.old_log_probs, batch.ref_log_probs, batch.token_weights
    config = config_for("clip_rows_forward", logits, tanh_in)
    rows = clip_loss.clip_rows_forward(logits, token_ids, scale, tanh_in, *given, **options, config=config)
    loss = rows.losses.sum()
    tokens = torch.full_like(loss, float(token_ids.shape[0]))

    def count(flag: int) -> Tensor:
        return ((rows.flags & flag) != 0).sum().to(loss.dtype)

    low, high = objective.ratio.bounds()
    usable = (rows.flags & clip_loss.DROPPED) == 0
    log_ratio = torch.zeros_like(rows.log_probs)
    if batch.old_log_probs is not None:
        log_ratio = torch.where(usable, rows.log_probs - batch.old_log_probs, 0).clamp(low, high)
    means = {
        "clip_fraction_low": (count(clip_loss.CLIPPED_LOW), tokens),
        "clip_fraction_high": (count(clip_loss.CLIPPED_HIGH), tokens),
        "dual_clip_fraction": (count(clip_loss.DUAL_CLIPPED), tokens),
        "approx_kl": (-log_ratio.sum(), tokens),
        "entropy": (rows.entropy.sum(), tokens),
        "ratio_clamped_fraction": (count(clip_loss.RATIO_CLAMPED), tokens),
        "skipped_fraction": (((rows.d_log_probs == 0) & (rows.d_entropy == 0)).sum(), tokens),
        "two_pass_fraction": (torch.zeros_like(tokens), tokens),
    }
    if objective.divergence is not None:
        means["ref_kl"] = (objective.divergence.estimator.value(rows.log_probs, batch.ref_log_probs).sum(), tokens)
    nonfinite = ~torch.isfinite(rows.log_probs) | ~usable | ((rows.flags & clip_loss.NONFINITE) != 0)
    largest = torch.cat([log_ratio.exp(), log_ratio.new_zeros(1)]).amax()
    sums = {"loss_sum": loss * denominator, "n_active": tokens, "nonfinite_tokens": nonfinite.sum()}
    packed = metrics.pack(sums, means, {"denominator": denominator, "ratio_max": largest}, loss)
    return rows.lse, rows.entropy, Differentiated(loss, rows.d_log_probs, rows.d_entropy, packed)
