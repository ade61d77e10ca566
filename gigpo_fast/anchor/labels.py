"""Group labels to dense numbers. Labels are names: they are compared, never counted with, so negative and huge ones are legal."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..arrays import is_array
from . import paths, sorting
from .rows import Objects, read

FIX = "labels are compared, not rounded: pass int64 ids, or a list of str, int, tuples or other exact hashables"


def group_ids(
    labels: Sequence | Tensor,  # (S,) str, int or any hashable; or an integer tensor
) -> Tensor:
    """Number labels by first occurrence: (S,) int64, dense from 0, on the device of a tensor of labels, else on the CPU.

    Slow equivalent: `number = {}; torch.tensor([number.setdefault(label, len(number)) for label in labels])`
    "7" is not "007" and not 7. Floats and bools raise TypeError, because their equality is not identity (1 == 1.0 == True), None and
    tensors because they name nothing.
    """
    return numbered("group_ids", "labels", labels)


def group_of_valid(group: Any, size: int, valid: Tensor | None) -> Tensor | None:
    """The `group` argument of group_states as numbers, for the valid rows only: others may hold anything."""
    if group is None:
        return None
    if len(group) != size:
        fix = "give every step the label of its task"
        checks.fail("group_states", "group", f"{size} labels, one for each state", f"{len(group)} labels", fix)
    if valid is not None:
        group = group[valid.to(group.device)] if isinstance(group, Tensor) else list(itertools.compress(group, valid.tolist()))
    return numbered("group_states", "group", group)


def numbered(function: str, name: str, labels: Any) -> Tensor:
    """(S,) int64 on the device of a tensor of labels, else on the CPU: the labels by first occurrence."""
    if is_array(labels):
        labels = labels.tolist()  # Python's own values: ints of any width, texts; and floats, which are refused
    if isinstance(labels, Tensor):
        checks.tensor(function, name, labels, shape=(None,), dtypes=checks.INTEGERS, fix=FIX)
        return paths.group_rows(read(labels.to(torch.int64), None), None).ids
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence):
        fix = "pass one label a row, list(labels)"
        checks.fail(function, name, "a list of labels or an integer tensor", type(labels).__name__, fix, error=TypeError)
    found = paths.group_text(labels, None) if isinstance(labels, list) else None
    if found is not None:
        return found.ids
    numpy = sys.modules.get("numpy")  # without NumPy there are no NumPy labels
    inexact = (float, bool, Tensor, type(None)) if numpy is None else (float, bool, Tensor, type(None), numpy.floating, numpy.bool_)
    types = set(map(type, labels))
    if any(issubclass(kind, inexact) for kind in types):
        row = next(row for row, label in enumerate(labels) if isinstance(label, inexact))
        fix = "a tensor is equal to itself alone: torch.stack them" if isinstance(labels[row], Tensor) else FIX
        got = f"{type(labels[row]).__name__} {checks.describe(labels[row])}"
        checks.fail(function, f"{name}[{row}]", "str, int or another exact hashable", got, fix, error=TypeError)
    if all(issubclass(kind, (str, bytes)) for kind in types):
        return paths.group_rows(Objects(list(labels)), None).ids
    try:
        return sorting.number_keys(list(labels)).ids
    except TypeError as error:
        checks.fail(function, name, "hashable labels", str(error), FIX, error=TypeError)
