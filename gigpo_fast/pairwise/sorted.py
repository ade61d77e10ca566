"""Alignment by optimal transport: distributions are compared, so what is compared is sorted first."""

import torch
from torch import Tensor

from .. import checks
from ..inference import takes_inference_tensors
from .pairs import in_range


@takes_inference_tensors
def sorted_scores(
    log_probs: Tensor,  # (S,) float, log pi of whole responses
    ref_log_probs: Tensor,  # (S,) float, of the reference policy
    pairs: Tensor,  # (P, 2) int64, the numbers of the chosen and of the rejected response
    *,
    paired: bool = True,
) -> Tensor:  # (2 P,) of log_probs' dtype: what should be larger, ascending, then what should be smaller, ascending
    """The quantiles that AOT compares, for `pairwise_loss(sorted_scores(...), halves(2 P), objective=recipe("aot").objective)`.

        chosen, rejected = pairs.T
        if paired:
            one, other = log_probs[chosen] - log_probs[rejected], ref_log_probs[chosen] - ref_log_probs[rejected]
        else:
            one, other = (log_probs - ref_log_probs)[chosen], (log_probs - ref_log_probs)[rejected]
        torch.cat([one.sort().values, other.sort().values])

    Each loss depends on the whole batch: a part of it has other quantiles, so gather a batch before. Gradients reach log_probs alone.
    Numbers of no response are refused where values are checked, and make everything NaN elsewhere. Source: AOT (arXiv 2406.05882), by
    pairs and without.
    """
    function = "sorted_scores"
    checks.tensor(function, "log_probs", log_probs, shape=(None,), dtypes=checks.FLOATS, fix="sum them with pairwise.sequence_log_probs")
    like = {"shape": tuple(log_probs.shape), "dtypes": checks.FLOATS, "device": log_probs.device}
    checks.tensor(function, "ref_log_probs", ref_log_probs, **like, fix="score the responses with the reference policy")
    fix = "pass the numbers of the chosen and the rejected response, one pair a row"
    checks.tensor(function, "pairs", pairs, shape=(None, 2), dtypes=(torch.int64,), device=log_probs.device, fix=fix)
    pairs, log_probs = in_range(function, pairs, log_probs, None, "count responses from 0")
    ref = ref_log_probs.detach().to(log_probs.dtype)
    if paired:
        of_pair = lambda value: value[pairs[:, 0]] - value[pairs[:, 1]]  # noqa: E731
        one, other = of_pair(log_probs), of_pair(ref)
    else:
        ratio = log_probs - ref
        one, other = ratio[pairs[:, 0]], ratio[pairs[:, 1]]
    return torch.cat([one.sort().values, other.sort().values])
