"""ReMax: the return of each token less the score that the greedy response to the same prompt got."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .layout import token_values
from .token_returns import token_returns


def remax_advantages(
    rewards: Tensor,  # (B, T) or (N,) float, reward of each token
    baselines: Tensor,  # (B,), or the shape of rewards: the greedy response's score for each row or token
    mask: Tensor,  # the shape of rewards, bool
    *,
    gamma: float = 1.0,
    sequence_ids: Tensor | None = None,  # the same shape, int64; None: a row is a sequence
    carry: bool = True,
) -> Tensor:  # the shape of rewards, float32, float64 for float64 rewards; 0 where masked
    """Reward to go minus the greedy baseline.

    The same, slowly: `(token_returns(rewards, mask) - baselines[:, None]) * mask`

    Options, precision and errors as in `token_returns`.
    Source: ReMax (arXiv 2310.10505), Algorithm 1.
    """
    function = "remax_advantages"
    returns = token_returns(rewards, mask, gamma=gamma, sequence_ids=sequence_ids, carry=carry)
    if isinstance(baselines, Tensor) and baselines.dim() == 1 and mask.dim() == 2:
        checks.tensor(function, "baselines", baselines, shape=mask.shape[:1], device=mask.device, fix="one greedy score a row")
        baselines = baselines.unsqueeze(1).expand(mask.shape)
    baseline = token_values(function, "baselines", baselines, mask)
    return torch.where(mask, returns.to(torch.float64) - baseline, 0.0).to(arguments.result_dtype(rewards, baselines))
