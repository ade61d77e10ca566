"""The plan: which tokens enter the head, in which order, and which of them may need a backward.

Untrained tokens never enter. Where the objective vanishes at zero advantage, tokens whose whole scope (token or
sequence) has advantage 0 stand last, behind `n_backward`: they are scored for the metrics, unless one does without,
and never differentiated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .objective.batch import Sequences
from .objective.block import Scope
from .objective.policy import PolicyObjective
from .segments import segment_min
from .sequences import sequences_of


class Plan(NamedTuple):
    """Made once per batch by `plan_tokens`; with it the fused loss need not wait for the device."""

    rows: Tensor  # (n,) int64, the flat positions of trained tokens, those that may need a backward first
    n_backward: int  # how many of them may need a backward
    boundaries: Tensor  # (k + 1,) int64 on the CPU: where sequences start and end in `rows`; empty for token scope
    shape: tuple[int, ...]  # of the mask
    scope: int  # of the objective it was made for
    skips: bool  # whether that objective vanishes at zero advantage, so that tokens were left out of the backward
    scores_idle: bool = True  # whether such tokens are in `rows`


def plan_tokens(
    mask: Tensor,  # (B, T) or (N,) bool, True = this token is trained
    advantages: Tensor,  # shape of mask, float
    *,
    objective: PolicyObjective,
    sequence_ids: Tensor | None = None,  # shape of mask, int64
    score_idle: bool = True,
) -> Plan:
    """Decide which tokens need what, once per batch; waits for the device at most a few times.

        rows = mask.flatten().nonzero()              # then those that cannot matter are moved to the end

    `score_idle` False leaves tokens that cannot matter (advantage 0, no penalty) out of the head altogether: 0 operations instead of
    2VH each. Loss and gradients are the same and the denominator still counts them; n_active and the means among the metrics are then
    those of the other tokens. Raises if shapes differ. Pass the plan to `linear_policy_loss` with the same mask, advantages and objective.
    """
    score_idle = checks.switch("plan_tokens", "score_idle", score_idle)
    sequences = _checked("plan_tokens", mask, advantages, objective, sequence_ids)
    planned = _ordered(mask, advantages, sequences, objective, score_idle)
    return Plan(*planned, tuple(mask.shape), int(objective.scope), objective.zero_at_zero_advantage, score_idle)


def check_plan(
    function: str, plan: Plan, mask: Tensor, advantages: Tensor, sequences: Sequences | None, objective: PolicyObjective
) -> None:
    """Refuse a plan of another shape or kind of objective; which tokens it names is compared where values are checked."""
    if not isinstance(plan, Plan):
        checks.fail(function, "plan", "a Plan or None", plan, "plan_tokens(mask, advantages, objective=...) makes it", error=TypeError)
    if sequences is not None and sequences.group_name:
        checks.fail(function, "plan", "None where sequences are cut over ranks", plan.shape, "leave it out: the ranks plan together")
    expected, fix = f"made by plan_tokens for shape {tuple(mask.shape)} and this objective", "make it anew for each batch"
    if plan.shape != tuple(mask.shape) or plan.scope != int(objective.scope):
        checks.fail(function, "plan", expected, f"one for {plan.shape}", fix)
    if plan.skips != objective.zero_at_zero_advantage:
        got = (
            "one that leaves tokens at zero advantage out of the backward" if plan.skips else "one that leaves no token out of the backward"
        )
        checks.fail(function, "plan", expected, got, fix)
    if checks.values_wanted(mask, advantages, plan.rows):
        rows, n_backward, boundaries = _ordered(mask, advantages, sequences, objective, plan.scores_idle)
        if not torch.equal(rows, plan.rows) or n_backward != plan.n_backward or not torch.equal(boundaries, plan.boundaries):
            checks.fail(function, "plan", expected, "one that names other tokens or sequences", fix)


def rows_that_matter(
    mask: Tensor,  # (B, T) bool
    advantages: Tensor,  # (B, T) float
    *,
    objective: PolicyObjective,
    sequence_ids: Tensor | None = None,  # (B, T) int64
) -> Tensor:
    """(B,) bool: rows that can change the loss or a gradient; the others need no transformer pass at all.

        mask.any(1) if not objective.zero_at_zero_advantage else (mask & (advantages != 0)).any(1)

    A row with advantage 0 matters if its sequence also has rows with another advantage. Keep the denominator of the
    whole batch when you leave rows out. With a divergence or an entropy bonus every row with a trained token matters.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        checks.fail("rows_that_matter", "mask", "(B, T) bool", mask, "packed tokens have no rows: use plan_tokens")
    sequences = _checked("rows_that_matter", mask, advantages, objective, sequence_ids)
    return tokens_that_matter(mask.reshape(-1), advantages.reshape(-1), sequences, objective).view(mask.shape).any(1)


def tokens_that_matter(mask: Tensor, advantages: Tensor, sequences: Sequences | None, objective: PolicyObjective) -> Tensor:
    """(N,) bool: trained tokens whose coefficient may differ from 0. NaN advantages matter."""
    if not objective.zero_at_zero_advantage:
        return mask
    nonzero = mask & (advantages != 0)
    if objective.scope == Scope.TOKEN:
        return nonzero
    if objective.scope == Scope.BATCH:
        return mask & nonzero.any()
    return mask & (sequences.sums(nonzero.to(torch.float32)) > 0)[sequences.ids]


def order_tokens(mask: Tensor, advantages: Tensor, sequences: Sequences | None, objective: PolicyObjective) -> tuple[Tensor, int, Tensor]:
    """(rows, n_backward, boundaries) of a flat batch; sequences in the order of their first trained tokens, whatever their labels."""
    matters = tokens_that_matter(mask, advantages, sequences, objective)
    rows = mask.nonzero().squeeze(1)
    idle = (~matters.index_select(0, rows)).to(torch.int64)
    if objective.scope != Scope.SEQUENCE:  # a whole batch needs no boundaries
        order = torch.argsort(idle, stable=True)
        boundaries = torch.empty(0, dtype=torch.int64, device="cpu")
    else:
        own = sequences.ids[rows]
        first = segment_min(torch.arange(rows.shape[0], device=rows.device), own, rows.shape[0], size=sequences.lengths.shape[0])
        unit, order = torch.sort(idle * rows.shape[0] + first[own], stable=True)
        lengths = torch.unique_consecutive(unit, return_counts=True)[1].cpu()
        boundaries = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return rows.index_select(0, order), int((idle == 0).sum()), boundaries


def _ordered(
    mask: Tensor, advantages: Tensor, sequences: Sequences | None, objective: PolicyObjective, score_idle: bool
) -> tuple[Tensor, int, Tensor]:
    rows, n_backward, boundaries = order_tokens(mask.reshape(-1), advantages.reshape(-1), sequences, objective)
    if score_idle:
        return rows, n_backward, boundaries
    # no sequence lies on both sides of n_backward: one that matters matters whole
    return rows[:n_backward], n_backward, boundaries[boundaries <= n_backward]


def _checked(function: str, mask: Tensor, advantages: Tensor, objective: PolicyObjective, sequence_ids: Tensor | None) -> Sequences | None:
    checks.mask(function, mask)
    checks.tensor(
        function,
        "advantages",
        advantages,
        shape=tuple(mask.shape),
        dtypes=checks.FLOATS,
        device=mask.device,
        fix="give one advantage a token (advantage.to_tokens)",
    )
    return sequences_of(function, mask, sequence_ids, needed=objective.scope == Scope.SEQUENCE)
