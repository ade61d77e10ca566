"""The per-token arguments that all losses share: checked, cast, and weighed by the aggregation."""

import torch
from torch import Tensor

from . import checks, values
from .constants import constant
from .objective import PolicyObjective, Scope, TokenBatch
from .objective.penalty import ANCHORS
from .sequences import Denominator, sequences_of
from .transforms import transformed


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
    *,
    densities: bool = False,
) -> tuple[TokenBatch, Tensor]:
    """A TokenBatch of the caller's shape (its log_probs still to come) and the denominator as a 0-dim tensor.

    `densities`: log-probs may be of something else than tokens, and exceed 0.
    """
    if not isinstance(objective, PolicyObjective):
        checks.fail(
            function, "objective", "a PolicyObjective", objective, 'compose one, or take recipes.recipe("gigpo").objective', error=TypeError
        )
    checks.mask(function, mask, shape, device)

    def ready(name: str, value: Tensor | None, fix: str) -> Tensor | None:
        if value is None:
            return None
        checks.one_number_a_token(function, name, value, shape)
        checks.tensor(function, name, value, shape=shape, dtypes=checks.FLOATS, device=device, fix=fix)
        return constant(function, name, value).to(dtype)

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
        _refuse_reference(function, objective, ref_log_probs)
    if checks.values_wanted(mask, advantages, old_log_probs, ref_log_probs):
        values.check_finite(function, "advantages", advantages, mask)
        for name, value in {"old_log_probs": old_log_probs, "ref_log_probs": ref_log_probs}.items():
            if value is not None:
                values.check_log_probs(function, name, value, mask, infinite=False, densities=densities)
    counted = denominator if isinstance(denominator, Denominator) else Denominator(1.0)
    if counted.sequence_group and transformed():
        got = f"one of sequences cut over the ranks of group {counted.sequence_group}"
        fix = "give every rank whole sequences, or differentiate with backward()"
        checks.fail(function, "denominator", "one of whole sequences under torch.func and forward mode", got, fix)
    if counted.sequence_group and objective.scope == Scope.BATCH:
        checks.fail(
            function,
            "objective",
            "of token or sequence scope where sequences are cut over ranks",
            "one with a statistic of the whole batch",
            "hand the statistic in, so that the block is of token scope",
        )
    if objective.needs_sequences and sequence_ids is None:
        _check_one_row(function, mask, advantages, counted)
    sequences = sequences_of(
        function,
        mask,
        sequence_ids,
        needed=objective.needs_sequences,
        denominator=counted,
        pooled=objective.scope == Scope.SEQUENCE,
    )
    total = _total(function, denominator, objective, mask, sequences, dtype)
    if sequences is not None and sequences.fault is not None:
        total = torch.where(sequences.fault, float("nan"), total)  # every weight, so the loss and all that has a gradient
    weights = objective.aggregation.weights(mask, sequences, dtype) / total
    ready_extras = _ready_extras(function, objective, shape, device, dtype, mask, extras, densities)
    return TokenBatch(advantages, None, advantages, old_log_probs, ref_log_probs, weights, sequences, ready_extras, mask), total


def _refuse_reference(function: str, objective: PolicyObjective, ref_log_probs: Tensor) -> None:
    anchors = [penalty.anchor for penalty in objective.penalties]
    if not anchors:
        fix = "add divergence=KLPenalty(...) to the objective, or leave it out: it would not be read"
        checks.fail(function, "ref_log_probs", "None for an objective without a divergence", ref_log_probs, fix)
    name = ANCHORS.get(anchors[0])
    expected = f'None where the divergence is from anchor="{anchors[0]}"'
    if name is None:
        fix = "leave it out: the divergence is from old_log_probs"
    else:
        fix = f"pass the {anchors[0]}'s log-probs as extras={{{name!r}: ...}}"
    checks.fail(function, "ref_log_probs", expected, ref_log_probs, fix)


def _check_one_row(function: str, mask: Tensor, advantages: Tensor, counted: Denominator) -> None:
    """Refuse a single row that may be packed sequences: its advantages differ, and nothing says that rows are sequences.

    On a GPU nothing is made NaN of it: the row may well be one sequence with several turns.
    """
    if mask.dim() != 2 or mask.shape[0] != 1 or not checks.values_wanted(mask, advantages):
        return
    if counted.by_row and counted.per_sequence.shape[0] > 1:
        return  # a micro-batch of one row of several
    trained = advantages[mask]
    if bool((trained != trained[:1]).any()):
        checks.fail(
            function,
            "sequence_ids",
            "given where an objective needs sequences and the only row has different advantages",
            None,
            "label packed sequences with packing.sequence_ids_of(cu_seqlens, token_ids); a row that is one sequence of several turns "
            "says so with torch.zeros_like(token_ids), or with the denominator of all rows from distributed.global_denominator",
        )


def _total(function, denominator, objective, mask, sequences, dtype) -> Tensor:
    if isinstance(denominator, Denominator):
        wanted = objective.aggregation.counts
        if denominator.counts not in ("", wanted):
            fix = "count for this objective, global_denominator(mask, objective=objective), or pass its .total if that is meant"
            expected, got = f"a number of {wanted}, as {objective.aggregation} takes", f"a number of {denominator.counts}"
            checks.fail(function, "denominator", expected, got, fix)
        denominator = denominator.total
    if denominator is None:
        return objective.aggregation.count(mask, sequences).to(dtype).clamp(min=1)  # nothing trained: the loss is 0, not 0 / 0
    if isinstance(denominator, Tensor):
        fix = "pass a 0-dim tensor, a float or distributed.global_denominator(...)"
        checks.one_number(function, "denominator", denominator, fix=fix)
        if checks.values_wanted(denominator) and not bool(denominator > 0):
            checks.fail(function, "denominator", "> 0", float(denominator), "count the whole batch with distributed.global_denominator")
        return constant(function, "denominator", denominator).to(mask.device, dtype)
    value = checks.number(function, "denominator", denominator, above=0, fix="count the whole batch with distributed.global_denominator")
    return torch.full((), value, dtype=dtype, device=mask.device)


def _ready_extras(function, objective, shape, device, dtype, mask, extras, densities) -> dict[str, Tensor]:
    extras = {} if extras is None else extras
    if not isinstance(extras, dict):
        fix = 'pass a dict, for example extras={"weights": ...}'
        checks.fail(function, "extras", "a dict from names to tensors", type(extras).__name__, fix, error=TypeError)
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
        value = constant(function, f"extras[{name!r}]", value)
        ready[name] = value.to(dtype) if value.is_floating_point() else value
    for name, value in ready.items():
        if value.is_floating_point() and checks.values_wanted(value, mask):
            _check_extra(function, name, value, mask, densities)
    return ready


def _check_extra(function: str, name: str, value: Tensor, mask: Tensor, densities: bool) -> None:
    argument = f"extras[{name!r}]"
    if name.endswith("log_probs"):  # a sampler or a teacher may rule a token out
        values.check_log_probs(function, argument, value, mask, infinite=True, densities=densities)
        return
    if name != "weights":
        values.check_not_nan(function, argument, value, mask)
        return
    low, high = values.value_range(value, mask)
    if not 0 <= low <= high < float("inf"):
        got = f"numbers from {low} to {high}"
        checks.fail(function, argument, "finite and >= 0 at trained tokens", got, "clip or mask them first")
