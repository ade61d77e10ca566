"""Anchor states by similarity: a state joins the first group whose first member is like enough, in row order.

Raw text often differs where the state does not. The rule is the one of GiGPO's public implementation, so groups are the same; what
makes it bearable is that equal texts are compared once, and that two cheap upper bounds settle most of the rest.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..types import StateGroups
from .grouping import group_states
from .sorting import by_first_occurrence


def group_similar_states(
    states: Sequence[str],  # S texts
    group: Sequence | Tensor | None = None,  # (S,) label of each step's task; None is one group
    *,
    threshold: float,  # in (0, 1); 0.95 is the usual choice
    valid: Tensor | Sequence[bool] | None = None,  # (S,) bool; a row that is not valid gets id -1
) -> StateGroups:
    """Give every text the number of the first group of its task whose first member is at least `threshold` similar.

    Slow equivalent, inside one task:
        for state in states:
            fits = (i for i, first in enumerate(firsts) if difflib.SequenceMatcher(None, state, first).ratio() >= threshold)
            ids.append(next(fits, len(firsts)))
            firsts += [state] * (ids[-1] == len(firsts))

    The result depends on the order of the rows, as the rule does; ids are numbered by first occurrence over all tasks.
    Raises ValueError for a threshold outside (0, 1) and TypeError for states that are not str.
    Source: the similarity mode of GiGPO's public implementation (verl-agent).
    """
    checks.number("group_similar_states", "threshold", threshold, above=0.0, fix="0.95 is the usual choice; group_states is exact")
    if threshold >= 1.0:
        checks.fail("group_similar_states", "threshold", "below 1", threshold, "for equal texts use group_states")
    exact = group_states(states, group, valid=valid)
    first_rows = exact.first_row.tolist()
    for row in first_rows:
        if not isinstance(states[row], str):
            fix = "convert states to text, or use group_states"
            checks.fail("group_similar_states", f"states[{row}]", "str", states[row], fix, error=TypeError)
    # Equal texts of a task join the same group, since groups never change their first member: one text of each is enough.
    tasks = [0] * len(first_rows) if group is None else _tasks(group, first_rows)
    merged = by_first_occurrence(torch.tensor(_first_fit([states[row] for row in first_rows], tasks, threshold), dtype=torch.int64))
    ids = torch.cat([merged.ids, torch.tensor([-1])])[exact.ids]
    counts = torch.zeros_like(merged.counts).index_add_(0, merged.ids, exact.counts)
    return StateGroups(ids, exact.first_row[merged.first_row], counts)


def _tasks(group: Any, rows: list[int]) -> list:
    return [label.item() if hasattr(label, "item") else label for label in (group[row] for row in rows)]


def _first_fit(texts: list[str], tasks: list, threshold: float) -> list[int]:
    groups: dict[Any, list[tuple[int, difflib.SequenceMatcher]]] = {}
    ids: list[int] = []
    distinct = 0
    for text, task in zip(texts, tasks):
        clusters = groups.setdefault(task, [])
        found = next((number for number, matcher in clusters if _similar(matcher, text, threshold)), None)
        if found is None:
            found, distinct = distinct, distinct + 1
            # The matcher prepares its second sequence once; every later text is only the first sequence.
            clusters.append((found, difflib.SequenceMatcher(None, "", text)))
        ids.append(found)
    return ids


def _similar(matcher: difflib.SequenceMatcher, text: str, threshold: float) -> bool:
    matcher.set_seq1(text)
    # Both bounds are exact upper bounds of ratio(), each ten times or more cheaper than the next.
    return matcher.real_quick_ratio() >= threshold and matcher.quick_ratio() >= threshold and matcher.ratio() >= threshold
