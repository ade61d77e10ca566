"""Anchor states, from the definition: two steps of one task share a group exactly if they saw the same state."""

import difflib
import struct

import torch


def group_states(states, group=None, valid=None, key=None):
    """states: S Python values, arrays or tensors; group: S labels or None; valid: S bools or None; key: a function of one state or None.

    Returns (ids, first_row, counts).
    """
    number, ids, first_row, counts = {}, [], [], []
    for row, state in enumerate(states):
        if valid is not None and not bool(valid[row]):
            ids.append(-1)
            continue
        label = None if group is None else group[row]
        label = label.item() if isinstance(label, torch.Tensor) else label
        place = (label, identity(state if key is None else key(state)))
        if place not in number:
            number[place] = len(number)
            first_row.append(row)
            counts.append(0)
        ids.append(number[place])
        counts[number[place]] += 1
    return tuple(torch.tensor(values, dtype=torch.int64, device="cpu") for values in (ids, first_row, counts))


def ragged_states(values, offsets):
    """The states that a pair of tensors stands for."""
    return [values[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]


def group_similar_states(states, group=None, threshold=0.95):
    """First fit against the first member of each group of the task, in row order. Returns ids."""
    firsts, ids = [], []
    for row, state in enumerate(states):
        label = None if group is None else group[row]
        for number, (other_label, first) in enumerate(firsts):
            if other_label == label and difflib.SequenceMatcher(None, state, first).ratio() >= threshold:
                ids.append(number)
                break
        else:
            ids.append(len(firsts))
            firsts.append((label, state))
    return torch.tensor(ids, dtype=torch.int64, device="cpu")


def identity(value):
    """A hashable that is equal for two values exactly if their types, shapes and bits are."""
    if isinstance(value, float) and not hasattr(value, "dtype"):
        return ("float", struct.pack("<d", value))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *[identity(item) for item in value])
    if isinstance(value, dict):
        return ("dict", frozenset((identity(key), identity(item)) for key, item in value.items()))
    if isinstance(value, torch.Tensor):
        bits = value.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).tolist()
        return ("tensor", str(value.dtype), tuple(value.shape), tuple(bits))
    if hasattr(value, "dtype"):  # NumPy
        if value.dtype.kind == "O":
            return (type(value).__name__, value.shape, *[identity(item) for item in value.reshape(-1).tolist()])
        if not isinstance(value, (str, bytes)):
            return (type(value).__name__, value.dtype.str, value.shape, value.tobytes())
    return (type(value).__name__.removesuffix("_"), value)
