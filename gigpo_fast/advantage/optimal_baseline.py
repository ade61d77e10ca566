"""The optimal token baseline: at each position, the group's mean return weighted by how large the gradient has grown by then."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .layout import forward_sum, layout, token_values
from .moments import moments
from .token_returns import masked_sum


def optimal_token_baseline_advantages(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    group: Tensor | list,  # (B,) labels for (B, T) tokens; (N,) int64 for packed ones
    log_probs: Tensor,  # the shape of rewards, float, of the sampled tokens under the policy that is trained
    sum_squared_probs: Tensor,  # the same, float: the sum over the vocabulary of the squared probabilities
    mask: Tensor,  # the same, bool
    *,
    importance_weights: Tensor | None = None,  # the same, float: policy over rollout engine, if they differ
    count_trained_tokens: bool = False,
    singleton: str = "raw",
    sequence_ids: Tensor | None = None,  # the same, int64; None: a row is a sequence
    eps: float = 1e-8,
) -> Tensor:  # the shape of rewards, float32, float64 for float64 rewards; 0 where masked
    """The return of each token minus a baseline of its own.

    The same, slowly, for one group:

        size = (1 - 2 * log_probs.exp() + sum_squared_probs) * importance_weights**2 * mask  # squared norm of the logits' gradient
        grown = size.cumsum(1)
        returns = token_returns(rewards, mask)
        baseline = (returns * grown * mask).sum(0) / ((grown * mask).sum(0) + eps)
        advantages = (returns - baseline) * mask

    Position t of a response is compared with position t of the others: its column, or, with count_trained_tokens, its number among
    the trained tokens of its sequence (responses with tool results between turns; verl's tir form; needed for packed tokens).
    Where only one response of the group is that long nothing can be compared: "raw" keeps the return, "zero" gives 0. Equal returns
    give exactly 0.
    In float64, result rounded once. Carries no gradient. Where values are checked raises for numbers that are not finite.
    Source: The Optimal Token Baseline (arXiv 2602.07078), logit-gradient proxy; verl's optimal_token_baseline and tir form.
    """
    function = "optimal_token_baseline_advantages"
    checks.mask(function, mask)
    eps = checks.number(function, "eps", eps, at_least=0.0, fix="1e-8 is usual")
    if singleton not in ("raw", "zero"):
        checks.fail(function, "singleton", "'raw' or 'zero'", singleton, '"raw" is what verl does')
    if (mask.dim() == 1 or sequence_ids is not None) and not count_trained_tokens:
        fix = "packed tokens have no columns: pass count_trained_tokens=True"
        checks.fail(function, "count_trained_tokens", "True with sequence_ids", count_trained_tokens, fix)
    named = {"rewards": rewards, "log_probs": log_probs, "sum_squared_probs": sum_squared_probs}
    reward, log_prob, squares = (token_values(function, name, value, mask) for name, value in named.items())
    size = 1.0 - 2.0 * log_prob.exp() + squares
    if importance_weights is not None:
        size = size * token_values(function, "importance_weights", importance_weights, mask).square()
    lines = layout(function, mask, sequence_ids)
    returns = lines.back(masked_sum(lines, lines.lay(reward), 1.0, carry=True))
    first = lines.previous(torch.zeros_like(lines.mask, dtype=torch.float64), 1.0) == 1.0
    through = (~first).to(torch.float64)
    grown = lines.back(forward_sum(torch.where(lines.mask, lines.lay(size), 0.0), through))
    if count_trained_tokens:
        position = lines.back(forward_sum(lines.mask.to(torch.float64), through)).to(torch.int64)
    else:
        position = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    task = _token_labels(function, group, mask)

    tokens, trained = returns.reshape(-1), mask.reshape(-1)
    weight = torch.where(trained, grown.reshape(-1), 0.0)
    place = (position.reshape(-1), task)
    total = moments(weight, trained, *place, ddof=1)
    plain = moments(tokens, trained, *place, ddof=1)
    centred = tokens - plain.mean
    shift = moments(weight * centred, trained, *place, ddof=1)
    mass = total.mean * total.count
    baseline = (shift.mean * shift.count + plain.mean * mass) / (mass + eps)
    compared = torch.where(plain.flat, 0.0, tokens - baseline)
    alone = tokens if singleton == "raw" else torch.zeros_like(tokens)
    result = torch.where(trained, torch.where(total.count > 1.0, compared, alone), 0.0)
    if lines.fault is not None:
        result = result.masked_fill(lines.fault, float("nan"))
    return result.view(mask.shape).to(arguments.result_dtype(rewards))


def _token_labels(function: str, group: Tensor | list, mask: Tensor) -> Tensor:
    """(N,) int64, the group of every token."""
    if mask.dim() == 1:
        return arguments.labels(function, "group", group, mask)
    used = torch.ones(mask.shape[0], dtype=torch.bool, device=mask.device)
    return arguments.labels(function, "group", group, used).unsqueeze(1).expand(mask.shape).reshape(-1)
