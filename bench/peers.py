"""Who else computes a clipped policy loss from hidden states and a head, each at its best setting for the batch.

A peer is a function of a Batch that returns the loss; one that is not installed says how to install it.
"""

from collections.abc import Callable

import pytest
import torch
from shapes import Batch
from torch import Tensor

from gigpo_fast.loss import linear_grpo_loss

CLIP = 0.2


def ours(batch: Batch) -> Tensor:
    """gigpo_fast.loss.linear_grpo_loss."""
    return linear_grpo_loss(
        batch.hidden, batch.weight, batch.token_ids, batch.advantages, batch.mask, old_log_probs=batch.old_log_probs
    ).loss


def eager(batch: Batch) -> Tensor:
    """Plain torch over all tokens, as a trainer without a fused head does it."""
    logits = batch.hidden @ batch.weight.T
    log_probs = torch.log_softmax(logits, -1).gather(-1, batch.token_ids.unsqueeze(-1)).squeeze(-1)
    return _clipped(log_probs, batch.old_log_probs, batch.advantages, batch.mask)


def eager_compacted(batch: Batch) -> Tensor:
    """Plain torch over the trained tokens only."""
    mask = batch.mask
    logits = batch.hidden[mask] @ batch.weight.T
    log_probs = torch.log_softmax(logits, -1).gather(-1, batch.token_ids[mask].unsqueeze(-1)).squeeze(-1)
    return _clipped(log_probs, batch.old_log_probs[mask], batch.advantages[mask], torch.ones_like(log_probs, dtype=torch.bool))


def liger(batch: Batch) -> Tensor:
    """Liger's LigerFusedLinearGRPOLoss, token mean ("bnpo"), compiled=False, its default chunk of one sequence."""
    chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="pip install liger-kernel")
    loss = chunked.LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, loss_type="bnpo", epsilon_low=CLIP, epsilon_high=CLIP
    )
    loss.temperature = 1.0
    return loss(
        batch.hidden,
        batch.weight,
        batch.token_ids,
        batch.mask.float(),
        batch.advantages[:, 0].contiguous(),
        old_per_token_logps=batch.old_log_probs,
    )[0]


def _clipped(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (log_probs - old_log_probs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
    return (loss * mask).sum() / mask.sum()


PEERS: dict[str, Callable[[Batch], Tensor]] = {"eager": eager, "eager_compacted": eager_compacted, "liger": liger}


def bare_gemms(batch: Batch) -> None:
    """The three matrix products that no exact loss with a trained head can do without: the physical limit."""
    hidden, weight = batch.hidden.detach()[batch.mask], batch.weight.detach()
    d_logits = hidden @ weight.T
    d_logits @ weight
    d_logits.T @ hidden
