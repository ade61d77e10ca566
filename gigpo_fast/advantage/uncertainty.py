"""SEED-GRPO: prompts whose sampled answers disagree in meaning count less."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments


def semantic_entropy(
    cluster: Tensor | list,  # (S,) int64 or a list of str or int: equal for answers of equal meaning
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    log_probs: Tensor | None = None,  # (S,) float, of each whole response; None: every response weighs the same
    normalised: bool = True,
    expected: bool = True,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float64, of each row's group; 0 where not valid
    """How much the answers of a group disagree.

    The same, slowly:

        mass = {c: exp(log_probs[g & (cluster == c)]).sum() for c in clusters of the group}   # or the count of c
        mass = {c: m / sum(mass.values()) for c, m in mass.items()}                          # normalised
        entropy = -sum(m * log(m)) if expected else -mean(log(m))

    The paper's display is log_probs given, normalised=False, expected=False: raw probabilities of whole responses, so the result
    is of the order of -log_probs and not at most log n. The default, shares of the group, is the discrete semantic entropy.
    expected=False with normalised masses averages -log m over clusters. log_probs given with normalised=True weighs by probability.
    In float64. Carries no gradient. Where values are checked raises for log_probs that are not finite.
    Source: SEED-GRPO (arXiv 2505.12346), Eq. 5; semantic entropy (arXiv 2302.09664).
    """
    function = "semantic_entropy"
    if log_probs is None and not normalised:
        checks.fail(function, "normalised", "True without log_probs", False, "pass the log-probs of the whole responses")
    like = log_probs if log_probs is not None else cluster
    if not isinstance(like, Tensor):
        name = "cluster" if log_probs is None else "log_probs"
        like = torch.zeros(arguments.rows_of_labels(function, name, like), dtype=torch.float32, device="cpu")
    counted = arguments.validity(function, valid, "log_probs", like)
    own, task = (arguments.labels(function, name, label, counted) for name, label in (("cluster", cluster), ("group", group)))
    logs = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    if log_probs is not None:
        logs = arguments.scores(function, "log_probs", log_probs, counted)
    whole = moments(logs, counted, task, ddof=1)
    # Relative to the largest of the group, so that exp neither over- nor underflows.
    size = logs.shape[0]
    high = torch.full((size,), -float("inf"), dtype=torch.float64, device=logs.device)
    high = high.scatter_reduce(0, whole.segment, torch.where(counted, logs, -float("inf")), "amax").index_select(0, whole.segment)
    high = torch.where(counted, high, 0.0)
    weight = torch.where(counted, (logs - high).exp(), 0.0)
    of_cluster = moments(weight, counted, task, own, ddof=1)
    of_group = moments(weight, counted, task, ddof=1)
    log_mass = (of_cluster.mean * of_cluster.count).log() + high
    if normalised:
        log_mass = log_mass - high - (of_group.mean * of_group.count).log()
    # Summed over rows, each with its share of the cluster, that is once a cluster.
    once = torch.where(counted, of_cluster.count.clamp(min=1.0).reciprocal(), 0.0)
    term = log_mass.exp() * log_mass if expected else log_mass
    total = moments(torch.where(counted, once * term, 0.0), counted, task, ddof=1)
    clusters = moments(once, counted, task, ddof=1)
    entropy = -total.mean * total.count
    if not expected:
        entropy = entropy / (clusters.mean * clusters.count).clamp(min=1.0)
    return torch.where(counted, entropy, 0.0)


def uncertainty_weights(
    entropy: Tensor,  # (S,) float, of each row's group
    count: Tensor,  # (S,) float or int, responses of each row's group
    *,
    alpha: float = 0.02,
    decay=None,
) -> Tensor:  # (S,) the dtype of entropy
    """A factor for the advantages of a group: decay(alpha entropy / log count), 1 where all agree.

    The same, slowly: `1 - alpha * entropy / torch.log(count)`, at least 0.

    decay: any function of torch; None is 1 - x, not below 0. The others of the paper: `lambda x: torch.exp(-x)` and
    `lambda x: (1 - x).clamp(min=0) ** gamma`; a re-implementation uses `lambda x: 1 / (1 + x)`. A group of one gets 1.
    Source: SEED-GRPO (arXiv 2505.12346), Eq. 6; alpha 0.02 and the linear decay are its section 4.1. The paper does not print the
    linear decay itself; 1 - x is the natural reading.
    """
    function = "uncertainty_weights"
    alpha = checks.number(function, "alpha", alpha, at_least=0.0, fix="0.02 is the paper's")
    checks.tensor(function, "entropy", entropy, shape=(None,), dtypes=checks.FLOATS, fix="semantic_entropy makes it")
    checks.tensor(function, "count", count, shape=tuple(entropy.shape), device=entropy.device, fix="group_moments(...).count")
    for name, value in (("entropy", entropy), ("count", count)):
        arguments.finite(function, name, value, "give 0 and 1 to rows that are not valid")
    if decay is not None and not callable(decay):
        checks.fail(function, "decay", "None or a function of torch", decay, "for example lambda x: torch.exp(-x)", error=TypeError)
    most = count.detach().to(torch.float64).clamp(min=1.0).log()
    share = torch.where(most > 0, alpha * entropy.detach().to(torch.float64) / torch.where(most > 0, most, 1.0), 0.0)
    return (_linear(share) if decay is None else decay(share)).to(entropy.dtype)


def _linear(share: Tensor) -> Tensor:
    return (1.0 - share).clamp(min=0.0)
