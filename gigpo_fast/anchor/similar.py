"""Anchor states by similarity: a state joins the first group whose first member is like enough, in row order.

Raw text often differs where the state does not. The rule is the one of GiGPO's public implementation, so groups are the same; what
makes it bearable is that equal texts are compared once, that two cheap upper bounds settle most of the rest, and that a comparison
stops as soon as its outcome is certain.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..types import StateGroups
from .grouping import group_states
from .paths import path
from .sorting import by_first_occurrence, number_keys

BUCKETS = 128  # letters share a bucket where their code points differ by a multiple; the bound is then looser, and still a bound


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
    difflib's rule for popular letters applies, as there: of two texts of 200 letters or more that differ in a few letters only, the
    ratio may be far below what the number of differing letters suggests. Where you know what differs, group_states with a `key` is
    faster, exact, and does not depend on the order.
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
    texts = [str(states[row]) for row in first_rows]
    tasks = [0] * len(texts) if group is None else number_keys(_labels(group, first_rows)).ids.tolist()
    merged = by_first_occurrence(torch.tensor(_first_fit(texts, tasks, threshold), dtype=torch.int64, device="cpu"))
    ids = torch.cat([merged.ids, torch.tensor([-1], dtype=torch.int64, device="cpu")])[exact.ids]
    counts = torch.zeros_like(merged.counts).index_add_(0, merged.ids, exact.counts)
    return StateGroups(ids, exact.first_row[merged.first_row], counts)


def _labels(group: Any, rows: list[int]) -> list:
    return [label.item() if hasattr(label, "item") else label for label in (group[row] for row in rows)]


def _first_fit(texts: list[str], tasks: list[int], threshold: float) -> list[int]:
    if path("cpu")[0] == "native":
        from . import similar_native

        return similar_native.first_fit(texts, tasks, threshold)
    return first_fit_by_difflib(texts, tasks, threshold)


def first_fit_by_difflib(texts: list[str], tasks: list[int], threshold: float) -> list[int]:
    """The path without C++: one vectorised bound against all groups of the task, then difflib itself for those that pass it."""
    counts, lengths = _letter_counts(texts), torch.tensor([len(text) for text in texts], dtype=torch.int64, device="cpu")
    firsts: dict[int, list[int]] = {}
    matchers: dict[int, difflib.SequenceMatcher] = {}
    ids: list[int] = []
    for number, text in enumerate(_with_progress(texts)):
        clusters = firsts.setdefault(tasks[number], [])
        in_common = torch.minimum(counts[clusters], counts[number]).sum(1)
        possible = 2.0 * in_common / (lengths[clusters] + lengths[number]) >= threshold
        for place in possible.nonzero().squeeze(1).tolist():
            first = clusters[place]
            if first not in matchers:  # it prepares its second sequence once; every later text is only the first sequence
                matchers[first] = difflib.SequenceMatcher(None, "", texts[first])
            matchers[first].set_seq1(text)
            if matchers[first].ratio() >= threshold:
                ids.append(first)
                break
        else:
            ids.append(number)
            clusters.append(number)
    numbers = {first: place for place, first in enumerate(dict.fromkeys(ids))}
    return [numbers[first] for first in ids]


def _letter_counts(texts: list[str]) -> Tensor:
    """(T, BUCKETS) int64, how often each letter occurs in each text: the shared ones bound what can match from above."""
    from .similar_native import code_points

    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64, device="cpu")
    text_of_letter = torch.repeat_interleave(torch.arange(len(texts), device="cpu"), lengths)
    place = text_of_letter * BUCKETS + code_points(texts) % BUCKETS
    return torch.bincount(place, minlength=len(texts) * BUCKETS).view(len(texts), BUCKETS)


def _with_progress(texts: list[str]) -> Iterable[str]:
    """A progress bar where the work turns out to take longer than a few seconds and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return texts
    return tqdm(texts, desc="group_similar_states", unit="text", delay=5.0, leave=False)
