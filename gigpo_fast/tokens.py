"""The per-token arguments that all losses share: checked, cast, and weighed by the aggregation."""

import torch
from torch import Tensor

from . import checks
from .distributed import Denominator
from .objective import PolicyObjective, Scope, TokenBatch
from .sequences import sequences_of


def ready_tokens(
    function: str,
    objective: PolicyObjective,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    advantages: Tensor,
    mask: Tensor,
    old_log_probs: Tensor | None,
    ref_log_probs: Tensor | None,
    extras: dict[str, Tensor] | None,
    sequence_ids: Tensor | None,
    denominator: float | Tensor | Denominator | None,
) -> tuple[TokenBatch, Tensor]:
    """A TokenBatch of the caller's shape (its log_probs still to come) and the denominator as a 0-dim tensor."""
    if not isinstance(objective, PolicyObjective):
        checks.fail(
            function, "objective", "a PolicyObjective", objective, 'compose one, or take recipes.recipe("gigpo").objective', error=TypeError
        )
    checks.mask(function, mask, shape, device)

    def ready(name: str, value: Tensor | None, fix: str) -> Tensor | None:
        if value is None:
            return None
        return checks.tensor(function, name, value, shape=shape, dtypes=checks.FLOATS, device=device, fix=fix).detach().to(dtype)

    advantages = ready(
        "advantages", advantages, "give one advantage a token: advantage.to_tokens(advantages, step_ids), or row[:, None].expand_as(mask)"
    )
    if advantages is None:
        checks.fail(function, "advantages", f"{shape} float", None, "compute them with gigpo_fast.advantage")
    old_log_probs = ready("old_log_probs", old_log_probs, "score the batch with the policy that sampled it; None means on-policy")
    ref_log_probs = ready("ref_log_probs", ref_log_probs, "score the batch with the reference policy")
    if objective.needs_reference and ref_log_probs is None:
        checks.fail(
            function,
            "ref_log_probs",
            f"given as {shape} for an objective with a KL penalty",
            None,
            "score the batch with the reference policy",
        )
    if not objective.needs_reference and ref_log_probs is not None:
        checks.fail(
            function,
            "ref_log_probs",
            "None for an objective without a divergence",
            ref_log_probs,
            "add divergence=KLPenalty(...) to the objective, or leave it out: it would not be read",
        )
    _check_values(function, mask, {"advantages": advantages, "old_log_probs": old_log_probs, "ref_log_probs": ref_log_probs})
    counted = denominator if isinstance(denominator, Denominator) else Denominator(1.0)
    if counted.sequence_group and objective.scope == Scope.BATCH:
        checks.fail(
            function,
            "objective",
            "of token or sequence scope where sequences are cut over ranks",
            "one with a statistic of the whole batch",
            "hand the statistic in, so that the block is of token scope",
        )
    sequences = sequences_of(
        function,
        mask,
        sequence_ids,
        needed=objective.needs_sequences,
        per_sequence=counted.per_sequence,
        group_name=counted.sequence_group,
    )
    total = _total(function, denominator, objective, mask, sequences, dtype)
    weights = objective.aggregation.weights(mask, sequences, dtype) / total
    ready_extras = _ready_extras(function, objective, shape, device, dtype, mask, extras)
    return TokenBatch(advantages, None, advantages, old_log_probs, ref_log_probs, weights, sequences, ready_extras, mask), total


def _total(function, denominator, objective, mask, sequences, dtype) -> Tensor:
    if isinstance(denominator, Denominator):
        denominator = denominator.total
    if denominator is None:
        return objective.aggregation.count(mask, sequences).to(dtype).clamp(min=1)  # nothing trained: the loss is 0, not 0 / 0
    if isinstance(denominator, Tensor):
        checks.tensor(
            function, "denominator", denominator, shape=(), fix="pass a 0-dim tensor, a float or distributed.global_denominator(...)"
        )
        if checks.values_wanted(denominator) and not bool(denominator > 0):
            checks.fail(function, "denominator", "> 0", float(denominator), "count the whole batch with distributed.global_denominator")
        return denominator.detach().to(mask.device, dtype)
    value = checks.number(function, "denominator", denominator, above=0, fix="count the whole batch with distributed.global_denominator")
    return torch.full((), value, dtype=dtype, device=mask.device)


def _ready_extras(function, objective, shape, device, dtype, mask, extras) -> dict[str, Tensor]:
    extras = extras or {}
    wanted = set(objective.reads)
    if set(extras) != wanted:
        missing, unread = sorted(wanted - set(extras)), sorted(set(extras) - wanted)
        checks.fail(
            function,
            "extras",
            f"exactly the names the objective reads, {sorted(wanted)}",
            f"{sorted(extras)} (missing {missing}, unread {unread})",
            "pass the missing ones, leave out the others or compose a block that reads them",
        )
    ready = {}
    for name, value in extras.items():
        labels = name.endswith(("_ids", "_keys"))  # segment_ids, group_ids, token_keys: numbers that are compared, not computed with
        dtypes = (torch.int64,) if labels else (*checks.FLOATS, torch.bool)
        checks.tensor(function, f"extras[{name!r}]", value, shape=shape, dtypes=dtypes, device=device, fix="one value a token")
        ready[name] = value.detach().to(dtype) if value.is_floating_point() else value.detach()
    weights = ready.get("weights")
    if weights is not None and checks.values_wanted(weights, mask):
        trained = weights[mask]
        if not bool((torch.isfinite(trained) & (trained >= 0)).all()):
            checks.fail(
                function,
                "extras['weights']",
                "finite and >= 0 at trained tokens",
                f"minimum {float(trained.min())}",
                "clip or mask them first",
            )
    return ready


def _check_values(function: str, mask: Tensor, tensors: dict[str, Tensor | None]) -> None:
    if not checks.values_wanted(mask, *tensors.values()):
        return
    for name, value in tensors.items():
        wrong = None if value is None else mask & ~torch.isfinite(value)
        if wrong is not None and bool(wrong.any()):
            first = wrong.nonzero()[0].tolist()
            checks.fail(
                function,
                name,
                "finite at trained tokens",
                f"{float(value[tuple(first)])} at {first} ({int(wrong.sum())} in all)",
                "mask such tokens out, or find where they come from",
            )
