"""Several judges of one response: mean, worst case, mean less doubt; and the population that is worst off."""

import torch
from torch import Tensor

from .. import checks
from ..advantage import arguments
from ..collectives import reduce_in_place
from ..values import all_finite


def ensemble_mean(
    scores: Tensor,  # (K, S) float, one row a reward model
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """The mean over the models: `scores.mean(0)`."""
    return _read("ensemble_mean", scores).mean(0).to(arguments.result_dtype(scores))


def ensemble_worst(
    scores: Tensor,  # (K, S) float, one row a reward model
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """Worst-case optimisation (WCO): the lowest score that any model gives, `scores.amin(0)`.

    Source: Reward Model Ensembles Help Mitigate Overoptimization (arXiv 2310.02743).
    """
    return _read("ensemble_worst", scores).amin(0).to(arguments.result_dtype(scores))


def ensemble_uncertainty(
    scores: Tensor,  # (K, S) float, one row a reward model
    *,
    coefficient: float,
    ddof: int = 1,
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """Uncertainty-weighted optimisation (UWO): the mean less `coefficient` times the variance over the models.

    The same, slowly: `scores.mean(0) - coefficient * scores.var(0, correction=ddof)`

    ddof 1 is what the authors' PPO runs, 0 their best-of-n (whose weight 0 counts as 1). One model has no variance.
    Source: Reward Model Ensembles Help Mitigate Overoptimization (arXiv 2310.02743); 0.1 for PPO and 0.5 for best-of-n.
    """
    function = "ensemble_uncertainty"
    coefficient = checks.number(function, "coefficient", coefficient, at_least=0.0, fix="0.1 is the authors' for PPO")
    if checks.whole(ddof) not in (0, 1):
        checks.fail(function, "ddof", "0 or 1", ddof, "1 divides by K - 1, 0 by K")
    values = _read(function, scores)
    mean = values.mean(0)
    variance = (values - mean).square().sum(0) / max(values.shape[0] - ddof, 1)
    return (mean - coefficient * variance).to(arguments.result_dtype(scores))


def worst_population(
    rewards: Tensor,  # (S, U) float, reward of each row in the eyes of each population
    *,
    temperature: float | None = None,
    valid: Tensor | None = None,  # (S,) bool
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where not valid
    """The rewards of the population whose mean over the batch is lowest.

    The same, slowly: `rewards[:, rewards.mean(0).argmin()]`

    With a temperature the populations are mixed with weights softmax(-mean / temperature). The batch spans the ranks of
    process_group. Of equal means the first counts. The minimum for each row is something else: `rewards.amin(1)`.
    Source: MaxMin-RLHF (arXiv 2402.08925), the policy's side.
    """
    function = "worst_population"
    checks.tensor(function, "rewards", rewards, shape=(None, None), fix="pass one column a population")
    used = torch.ones(rewards.shape[0], dtype=torch.bool, device=rewards.device)
    if valid is not None:
        used = checks.mask(function, valid, rewards.shape[:1], rewards.device, name="valid")
    values = torch.where(used.unsqueeze(1), rewards.detach(), 0).to(torch.float64)
    if checks.values_wanted(values) and not all_finite(values):
        arguments.fail_at(function, "rewards", ~values.isfinite().all(1), "finite in valid rows", "not finite", "set valid=False there")
    totals = reduce_in_place(torch.cat([values.sum(0), used.sum().to(torch.float64).unsqueeze(0)]), process_group)
    means = totals[:-1] / totals[-1].clamp(min=1.0)
    if temperature is None:
        weights = torch.zeros_like(means).scatter(0, means.argmin().unsqueeze(0), 1.0)
        chosen = torch.where(weights > 0, values, 0.0).sum(1)
    else:
        scale = checks.number(function, "temperature", temperature, above=0.0, fix="None takes the worst alone")
        chosen = (values * torch.softmax(-means / scale, 0)).sum(1)
    return torch.where(used, chosen, 0.0).to(arguments.result_dtype(rewards))


def _read(function: str, scores: Tensor) -> Tensor:
    checks.tensor(function, "scores", scores, shape=(None, None), fix="pass one row a reward model")
    if scores.shape[0] == 0:
        checks.fail(function, "scores", "at least one model's", scores, "pass one row a reward model")
    if checks.values_wanted(scores) and not all_finite(scores):
        wrong = ~scores.isfinite().all(0)
        arguments.fail_at(function, "scores", wrong, "finite", "not finite", "leave rows out that a model did not score")
    return scores.detach().to(torch.float64)
