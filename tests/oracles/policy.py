"""One call of `policy_loss` for an adapter: loss, gradients, metrics. And a weighting alone, for peers that make a mask of it first."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gigpo_fast import loss
from gigpo_fast.objective import PolicyObjective, Sequences, TokenBatch, Weighting


class Called(NamedTuple):
    """What a call gave."""

    loss: Tensor
    gradient: Tensor  # of log_probs
    entropy_gradient: Tensor | None
    metrics: dict[str, float]


def call(log_probs: Tensor, advantages: Tensor, mask: Tensor, objective: PolicyObjective, **keywords: Any) -> Called:
    """policy_loss and its backward. Extras that the objective does not read, and a reference it has no use for, are left out."""
    log_probs = log_probs.detach().clone().requires_grad_()
    entropy = keywords.pop("entropy", None)
    if entropy is not None:
        entropy = entropy.detach().clone().requires_grad_()
    extras = {name: value for name, value in (keywords.pop("extras", None) or {}).items() if name in objective.reads}
    reference = keywords.pop("ref_log_probs", None)
    result = loss.policy_loss(
        log_probs,
        advantages.expand_as(log_probs),
        mask.bool(),
        entropy=entropy,
        extras=extras,
        ref_log_probs=reference if objective.needs_reference else None,
        objective=objective,
        **keywords,
    )
    result.loss.backward()
    return Called(result.loss.detach(), log_probs.grad, None if entropy is None else entropy.grad, result.metrics_as_floats())


def factors(
    weighting: Weighting, mask: Tensor, *, old: Tensor, sequence_ids: Tensor, entropy: Tensor | None = None, **extras: Tensor
) -> Tensor:
    """The weighting's factor of every token (0 where untrained), in the shape of the mask; the policy stands at `old`."""
    kept = lambda value: torch.where(mask, value, 0).reshape(-1)  # noqa: E731
    ids = sequence_ids.reshape(-1).clamp(min=0)
    lengths = torch.zeros(int(ids.max()) + 1).index_add_(0, ids, mask.reshape(-1).float())
    flat, uncertain = kept(old), None if entropy is None else kept(entropy)
    given = {name: kept(value) for name, value in extras.items()}
    batch = TokenBatch(flat, uncertain, flat, flat, None, flat, Sequences(ids, lengths), given, mask.reshape(-1))
    return torch.where(mask, weighting.factor(batch).view(mask.shape), 0)
