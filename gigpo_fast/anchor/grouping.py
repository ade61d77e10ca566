"""States to group ids: the public functions, and the choice of the path that does the work.

Every path gives the same ids: dense, numbered by first occurrence, decided by bytes. So ids do not depend on device, thread count,
hash seed or number of ranks, and a path is chosen for speed alone.
"""

import functools
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, checks
from ..types import StateGroups
from . import rows as inputs
from . import sorting

VERIFY = ("bytes", "fingerprint")


def group_states(
    states: Any,  # S states: list or tuple of Python values, NumPy array (S, ...), tensor (S, ...), or (values, offsets) tensors
    group: Sequence | Tensor | None = None,  # (S,) label of each step's task: str, int or any hashable; None is one group
    *,
    valid: Tensor | Sequence[bool] | None = None,  # (S,) bool; a row that is not valid gets id -1, whatever it holds
    verify: str = "bytes",
    process_group: Any = None,
    _debug_hash_bits: int = 128,
) -> StateGroups:
    """Give every state the number of its anchor group: steps of one `group` in exactly the same state share it.

    Slow equivalent:
        number = {}
        ids = [number.setdefault((label, state), len(number)) for label, state in zip(group, states)]

    Values are equal if type and content are: True, 1 and 1.0 differ, "a" and b"a" differ, arrays of different shape or dtype differ;
    floats count by their bits (NaN equals itself, -0.0 is not 0.0). A pair of tensors (values, offsets) holds states of different
    lengths: state i is values[offsets[i] : offsets[i + 1]]. Lists and arrays give ids on the CPU, tensors on their own device.

    verify="bytes" compares the bytes of states whose fingerprints agree. verify="fingerprint" trusts the keyed 128-bit fingerprint
    where a path uses one: two of 1e9 honest states agree by chance with probability 1.5e-21.
    `process_group`: ids across ranks, as if the ranks' rows stood one after the other; `first_row` and `counts` are then global too.
    Every distinct state of a rank travels to all ranks. None groups the rows of this process.

    Returns StateGroups(ids (S,), first_row (G,), counts (G,)), all int64; ids are dense and numbered by first occurrence.
    Raises TypeError for float labels, unsupported values; ValueError for lengths that differ and offsets that do not increase.
    Source: GiGPO, arXiv 2505.10978, equation 6.
    """
    if verify not in VERIFY:
        checks.fail("group_states", "verify", f"one of {VERIFY}", verify, 'use "bytes" unless a fingerprint is proof enough')
    size = inputs.size(states)
    usable = _checked_valid(valid, size)
    rows = inputs.read(states, usable)
    labels = _labels(group, size, usable, rows.device)
    found = _group(rows, labels, bytes_decide=verify == "bytes", hash_bits=_debug_hash_bits)
    if usable is not None:
        found = _with_invalid_rows(found, usable.to(found.ids.device))
    if process_group is not None:
        from .exchange import across_ranks

        found = across_ranks(states, group, found, process_group)
    return found


def group_ids(
    labels: Sequence | Tensor,  # (S,) str, int or any hashable; or an integer tensor
) -> Tensor:
    """Number labels by first occurrence: (S,) int64, dense from 0. Labels are never used as numbers themselves.

    Slow equivalent: `number = {}; [number.setdefault(label, len(number)) for label in labels]`
    Negative and huge integers are legal, "7" is not "007", and floats and bools are errors, because equality of floats is not identity.
    """
    return _number_labels("group_ids", "labels", labels)


def path(device: torch.device | str = "cpu") -> tuple[str, str | None]:
    """Which path groups states on `device` ("native", "cuda" or "torch"), and why not a faster one (None if it is the fastest)."""
    device = torch.device(device)
    chosen = backend.choose(device)
    if device.type == "cuda" and backend.requested() != "torch":
        from . import cuda

        reason = cuda.why_not(device)
        return ("cuda", None) if reason is None else ("torch", reason)
    if chosen == "native":
        return "native", None
    return "torch", backend.why_not_native(device) if backend.requested() == "auto" else f"backend {backend.requested()!r} was asked for"


def _group(rows: "inputs.Objects | inputs.Packed", labels: Tensor | None, *, bytes_decide: bool = True, hash_bits: int = 128) -> StateGroups:
    name, _ = path(rows.device)
    if name == "native":
        from . import native

        return native.group(rows, labels, bytes_decide=bytes_decide, seed=_seed(), hash_bits=hash_bits)
    if name == "cuda":
        from . import cuda

        found = cuda.group(rows, labels, bytes_decide=bytes_decide, seed=_seed(), hash_bits=hash_bits)
        if found is not None:
            return found
    return sorting.group(rows, labels, seed=_seed(), hash_bits=hash_bits)


@functools.cache
def _seed() -> int:
    # Drawn per process, so that nobody can prepare colliding states; ids never depend on it. The variable repeats a timing problem.
    given = os.environ.get("GIGPO_FAST_HASH_SEED")
    if given is None:
        return int.from_bytes(os.urandom(8), "little", signed=True)
    try:
        return (int(given, 0) + 2**63) % 2**64 - 2**63
    except ValueError:
        checks.fail("group_states", "GIGPO_FAST_HASH_SEED", "an integer", given, "unset it or correct it")


def _labels(group: Any, size: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
    if group is None:
        return None
    if len(group) != size:
        checks.fail("group_states", "group", f"{size} labels, one for each state", f"{len(group)} labels", "give every step the label of its task")
    if valid is not None:
        group = group[valid.to(group.device)] if isinstance(group, Tensor) else list(itertools.compress(group, valid.tolist()))
    return _number_labels("group_states", "group", group).to(device)


def _number_labels(function: str, name: str, labels: Any) -> Tensor:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(labels, numpy.ndarray):
        labels = torch.from_numpy(labels) if labels.dtype.kind in "iufb" else labels.tolist()
    if isinstance(labels, Tensor):
        checks.tensor(function, name, labels, shape=(None,), dtypes=checks.INTEGERS, fix="label groups by integers or strings; floats are rounded and never safe")
        return _group(inputs.read(labels.to(torch.int64), None), None).ids
    types = set(map(type, labels))
    if any(issubclass(kind, (float, bool)) or (numpy is not None and issubclass(kind, (numpy.floating, numpy.bool_))) for kind in types):
        row = next(i for i, label in enumerate(labels) if isinstance(label, (float, bool)) or not hasattr(label, "__index__") and hasattr(label, "dtype"))
        checks.fail(function, f"{name}[{row}]", "str, int or another exact hashable", labels[row], "label groups by integers or strings", error=TypeError)
    if all(issubclass(kind, (str, bytes)) for kind in types):
        return _group(inputs.Objects(list(labels)), None).ids
    try:
        return sorting.number_keys(list(labels)).ids
    except TypeError as error:
        checks.fail(function, name, "hashable labels", str(error), "label groups by integers or strings", error=TypeError)


def _checked_valid(valid: Any, size: int) -> Tensor | None:
    if valid is None:
        return None
    if not isinstance(valid, Tensor):
        valid = torch.as_tensor(valid) if len(valid) else torch.zeros(0, dtype=torch.bool)
    return checks.mask("group_states", valid, (size,), valid.device, name="valid")


def _with_invalid_rows(found: StateGroups, valid: Tensor) -> StateGroups:
    ids = torch.full((valid.numel(),), -1, dtype=torch.int64, device=valid.device)
    kept = valid.nonzero().squeeze(1)
    ids[kept] = found.ids
    return StateGroups(ids, kept[found.first_row], found.counts)
