"""States to group ids: the public function, from checked arguments to the result, with invalid rows and other ranks put back in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..types import StateGroups
from . import rows as inputs
from .keyed import keyed
from .labels import group_of_valid
from .paths import group_rows, path

__all__ = ["group_states", "path"]

VERIFY = ("bytes", "fingerprint")


def group_states(
    states: Any,  # S states: list or tuple of Python values, NumPy array (S, ...), tensor (S, ...), or (values, offsets) tensors
    group: Sequence | Tensor | None = None,  # (S,) label of each step's task: str, int or any hashable; None is one group
    *,
    key: Callable[[Any], Any] | None = None,  # a function of one state; what it returns is compared in the state's place
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

    `key` takes out what differs although the state does not, for example anchor.normalise.digits(after="moves:"); `diagnose` proposes
    one. It must return a value of the kinds above and depend on its argument alone: it is called once for each distinct text, and not
    on rows that are not valid. With a key ids are on the CPU.

    verify="bytes" compares the bytes of states whose fingerprints agree. verify="fingerprint" trusts the keyed 128-bit fingerprint
    where a path uses one: among 1e9 honest states, some pair agrees by chance with probability 1.5e-21.
    `process_group`: ids across ranks, as if the ranks' rows stood one after the other; `first_row` and `counts` are then global too.
    Fingerprints travel, and of the states only those whose fingerprint came twice. None groups the rows of this process.

    Returns StateGroups(ids (S,), first_row (G,), counts (G,)), all int64; ids are dense and numbered by first occurrence.
    Raises TypeError for float labels and values (of states or keys) without an encoding; ValueError for lengths that differ, offsets
    that fall, and keys that fail.
    Source: GiGPO, arXiv 2505.10978, equation 6.
    """
    if verify not in VERIFY:
        checks.fail("group_states", "verify", f"one of {VERIFY}", verify, 'use "bytes" unless a fingerprint is proof enough')
    size = inputs.size(states)
    usable = _checked_valid(valid, size)
    if key is not None:
        states = keyed(states, key, None if usable is None else usable.tolist())
    rows = inputs.read(states, usable)
    labels = group_of_valid(group, size, usable)
    labels = None if labels is None else labels.to(rows.device)
    found = group_rows(rows, labels, bytes_decide=verify == "bytes", hash_bits=_debug_hash_bits)
    if usable is not None:
        found = _with_invalid_rows(found, usable.to(found.ids.device))
    if process_group is not None:
        from .exchange import across_ranks

        found = across_ranks(states, group, found, process_group, hash_bits=_debug_hash_bits)
    return found


def _checked_valid(valid: Any, size: int) -> Tensor | None:
    if valid is None:
        return None
    if not isinstance(valid, Tensor) and hasattr(valid, "__len__"):
        valid = torch.as_tensor(valid, device="cpu") if len(valid) else torch.zeros(0, dtype=torch.bool, device="cpu")
    return checks.mask("group_states", valid, (size,), getattr(valid, "device", None), name="valid")


def _with_invalid_rows(found: StateGroups, valid: Tensor) -> StateGroups:
    ids = torch.full((valid.numel(),), -1, dtype=torch.int64, device=valid.device)
    kept = valid.nonzero().squeeze(1)
    ids[kept] = found.ids
    return StateGroups(ids, kept[found.first_row], found.counts)
