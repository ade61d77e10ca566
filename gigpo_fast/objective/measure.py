"""The metrics of a batch, from what the objective said of its tokens."""

import torch
from torch import Tensor

from .. import metrics
from .batch import TokenBatch
from .policy import PolicyObjective, TokenTerms


@torch.no_grad()
def measure(
    objective: PolicyObjective, batch: TokenBatch, terms: TokenTerms, denominator: Tensor, *, skipped: Tensor | None = None
) -> Tensor:
    """(metrics.SIZE,) float32. `skipped` (n,) bool marks tokens that cost no backward, where a head was skipped at all."""
    usable = batch._replace(log_probs=batch.log_probs.detach())
    tokens = usable.total(torch.ones_like(usable.log_probs))
    clipped = objective.surrogate.clipped(usable, terms.ratio)

    def count(flags: Tensor) -> Tensor:
        return usable.total(flags.to(torch.float32))

    nonfinite = ~torch.isfinite(usable.log_probs) | terms.dropped | ~torch.isfinite(terms.loss)
    for value in (usable.advantages, usable.ref_log_probs, *usable.extras.values()):
        if value is not None and value.is_floating_point():
            nonfinite = nonfinite | torch.isnan(value)
    means = {
        "clip_fraction_low": (count(clipped.low), tokens),
        "clip_fraction_high": (count(clipped.high), tokens),
        "dual_clip_fraction": (count(clipped.dual), tokens),
        "approx_kl": (-usable.total(terms.log_ratio), tokens),
        "ratio_clamped_fraction": (count(terms.clamped), tokens),
    }
    if skipped is not None:
        means["skipped_fraction"] = (count(skipped), tokens)
        means["two_pass_fraction"] = (tokens.new_zeros(()), tokens)  # who recomputes adds how many
    if terms.ref_kl is not None:
        means["ref_kl"] = (usable.total(terms.ref_kl), tokens)
    if batch.entropy is not None:
        means["entropy"] = (usable.total(batch.entropy.detach()), tokens)
    ratio = terms.ratio if batch.mask is None else torch.where(batch.mask, terms.ratio, 0)
    largest = torch.cat([ratio, ratio.new_zeros(1)]).amax()  # of no tokens at all: 0
    sums = {"loss_sum": terms.loss.detach().sum() * denominator, "n_active": tokens, "nonfinite_tokens": count(nonfinite)}
    return metrics.pack(sums, means, {"denominator": denominator, "ratio_max": largest}, tokens)
