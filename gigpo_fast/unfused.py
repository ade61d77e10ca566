"""A policy loss in plain torch, from log-probs: what `policy_loss` is, and what the fused loss becomes under torch's transforms."""

import torch
from torch import Tensor

from . import checks
from .head import ReadyHead
from .objective import PolicyObjective, TokenBatch
from .objective.measure import measure
from .objective.policy import token_terms
from .ops import passes
from .ops.formula import rows_of_hidden
from .plan import Plan
from .transforms import batched
from .types import LossOutput


def loss_of_log_probs(
    objective: PolicyObjective, tokens: TokenBatch, mask: Tensor, denominator: Tensor, log_probs: Tensor, entropy: Tensor | None
) -> LossOutput:
    """The objective of log-probs and entropies of the mask's shape, in the compute dtype; what untrained tokens hold cannot matter."""
    kept = lambda value: None if value is None else torch.where(mask, value, 0).reshape(-1)  # noqa: E731
    batch = tokens._replace(
        log_probs=kept(log_probs),
        entropy=kept(entropy),
        advantages=kept(tokens.advantages),
        old_log_probs=kept(tokens.old_log_probs),
        ref_log_probs=kept(tokens.ref_log_probs),
        token_weights=tokens.token_weights.reshape(-1),
        extras={
            name: torch.where(mask, value, False if value.dtype == torch.bool else 0).reshape(-1) for name, value in tokens.extras.items()
        },
        mask=mask.reshape(-1),
    )
    terms = token_terms(objective, batch)
    return LossOutput(terms.loss.sum(), measure(objective, batch, terms, denominator))


def loss_of_hidden(
    function: str,
    objective: PolicyObjective,
    ready: ReadyHead,
    token_ids: Tensor,  # (N,)
    tokens: TokenBatch,
    mask: Tensor,
    denominator: Tensor,
    *,
    plan: Plan | None,
    budget: int,
    invariant: bool,
    weight_grad_out: Tensor | None,
) -> LossOutput:
    """The fused loss under a transform: log-probs of the tokens that matter in blocks, then the objective; 8NVH where fused takes 6."""
    if weight_grad_out is not None:
        fix = "derivatives are returned there, not added to a buffer"
        checks.fail(function, "weight_grad_out", "None under torch.func and forward mode", weight_grad_out, fix)
    hidden, scale, places = ready.hidden, ready.scale, None
    if plan is not None:
        mask = torch.zeros_like(mask).reshape(-1).index_fill(0, plan.rows, True).view(mask.shape)
    flat_mask = mask.reshape(-1)
    if batched() or torch.compiler.is_compiling():  # how many tokens are trained is not known: all are scored
        hidden = torch.where(flat_mask.unsqueeze(1), hidden, 0)
    else:
        places = flat_mask.nonzero().squeeze(1) if plan is None else plan.rows  # a plan needs no wait for the device
        hidden, scale, token_ids = hidden[places], scale[places], token_ids[places]
    head = passes.head_tensors(ready)
    found = rows_of_hidden(function, hidden, head, token_ids, scale, budget=budget, invariant=invariant)[:2]
    if places is not None:
        found = (torch.zeros_like(flat_mask, dtype=scale.dtype).index_put((places,), value) for value in found)
    log_probs, entropy = (value.reshape(mask.shape) for value in found)
    return loss_of_log_probs(objective, tokens, mask, denominator, log_probs, entropy)
