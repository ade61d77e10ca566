"""What `group_states` may be given, reduced to three forms: Python objects in a list, or rows of one flat buffer, equally long or not.

A list of str and bytes stays as it is, because reading the objects where they lie is cheaper than any copy. Rows that are not valid are
dropped here, so whatever they hold, of whatever type, cannot matter further on.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from .advice import advice
from .encoding import Unsupported, encode

FUNCTION = "group_states"
EXPECTED = "a list of str, bytes, int or nested values, a NumPy array, a tensor (S, ...), or a pair (values, offsets) of tensors"
ENCODABLE = "made of None, bool, int, float, str, bytes, tuple, list, dict, NumPy arrays and tensors"


class Objects(NamedTuple):
    """States as a list of objects, of any type until `encoded` has seen them."""

    items: list
    valid: Tensor | None = None  # which rows the items were, for messages; None is all

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class Packed(NamedTuple):
    """States as ranges of one buffer, data[starts[i] : starts[i] + lengths[i]]; ranges may overlap and leave gaps."""

    data: Tensor  # (N,) uint8, contiguous
    starts: Tensor  # (S,) int64, bytes
    lengths: Tensor  # (S,) int64, bytes

    @property
    def device(self) -> torch.device:
        return self.data.device


class FixedWidth(NamedTuple):
    """States of one length that lie one after the other: this form needs no memory beside the states."""

    data: Tensor  # (count * width,) uint8, contiguous
    count: int
    width: int  # bytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def packed(self) -> Packed:
        """The same as ranges."""
        starts = torch.arange(self.count, device=self.device, dtype=torch.int64) * self.width
        return Packed(self.data, starts, torch.full_like(starts, self.width))


def is_ragged(states: Any) -> bool:
    """True for a pair of tensors (values, offsets). Two states that are tensors go in a list."""
    return isinstance(states, tuple) and len(states) == 2 and all(isinstance(part, Tensor) for part in states)


def size(states: Any) -> int:
    """How many states there are, valid or not."""
    if is_ragged(states):
        return _checked_offsets(*states).numel() - 1
    if isinstance(states, (list, tuple)):
        return len(states)
    if isinstance(states, Tensor) or _is_numpy(states):
        if states.ndim == 0:
            checks.fail(FUNCTION, "states", "one row a state, (S, ...)", states, "add a first dimension with one entry a step")
        return states.shape[0]
    got = f"{type(states).__name__} {checks.describe(states)}"
    checks.fail(FUNCTION, "states", EXPECTED, got, "convert it to one of these", error=TypeError)


def read(states: Any, valid: Tensor | None) -> Objects | Packed | FixedWidth:
    """The valid rows of `states` in one of the three forms."""
    if is_ragged(states):
        values, offsets = states
        scale = values.element_size() * (values[:1].numel() if values.shape[0] else 1)
        bounds = offsets.to(torch.int64) * scale
        return _select(Packed(_bytes_of(values), bounds[:-1].contiguous(), bounds[1:] - bounds[:-1]), valid)
    if isinstance(states, Tensor):
        return _select(_fixed_width(_bytes_of(states), states.shape[0]), valid)
    if _is_numpy(states):
        if states.dtype.kind in "OUS":
            states = states.tolist() if states.ndim == 1 else list(states)
        else:
            return _select(_fixed_width(_numpy_bytes(states), states.shape[0]), valid)
    items = states if valid is None and isinstance(states, list) else list(states if valid is None else _compressed(states, valid))
    return Objects(items, valid)


def encoded(rows: Objects) -> Objects | FixedWidth:
    """The same states as str and bytes objects, or, if all are small integers, as numbers in a buffer."""
    types = set(map(type, rows.items))
    if all(issubclass(kind, (str, bytes)) for kind in types):
        return rows
    if types == {int} and -(2**63) <= min(rows.items) and max(rows.items) < 2**63:  # the encoder takes any size
        return _fixed_width(_bytes_of(torch.tensor(rows.items, dtype=torch.int64, device="cpu")), len(rows.items))
    states = []
    for number, item in enumerate(rows.items):
        try:
            states.append(encode(item))
        except Unsupported as error:
            row = number if rows.valid is None else list(_compressed(itertools.count(), rows.valid))[number]
            checks.fail(
                FUNCTION,
                f"states[{row}]",
                ENCODABLE,
                f"{error} in {checks.describe(item)}",
                advice(error.value),
                error=TypeError,
            )
    return Objects(states)


def _compressed(values: Iterable, valid: Tensor) -> Iterator:
    return itertools.compress(values, valid.tolist())


def _select(rows: Packed | FixedWidth, valid: Tensor | None) -> Packed | FixedWidth:
    if valid is None:
        return rows
    valid, rows = valid.to(rows.device), rows.packed() if isinstance(rows, FixedWidth) else rows
    return Packed(rows.data, rows.starts[valid], rows.lengths[valid])


def _fixed_width(data: Tensor, count: int) -> FixedWidth:
    return FixedWidth(data, count, data.numel() // count if count else 0)


def _bytes_of(values: Tensor) -> Tensor:
    if values.layout != torch.strided or type(values) not in (Tensor, torch.nn.Parameter):
        checks.fail(
            FUNCTION,
            "states",
            "plain dense tensors",
            f"{type(values).__name__} with layout {values.layout}",
            "convert it with to_dense() or to_local()",
            error=TypeError,
        )
    flat = values.detach().resolve_conj().resolve_neg().reshape(-1)
    # contiguous() would leave a vector of one or no element whatever stride it has, and view(uint8) then refuses
    return (flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)).view(torch.uint8)


def _numpy_bytes(states: Any) -> Tensor:
    numpy = sys.modules["numpy"]
    if states.dtype.kind == "V":
        got = f"structured {states.dtype}"
        checks.fail(FUNCTION, "states", "an array without padding bytes", got, "pass the fields as a list of tuples", error=TypeError)
    flat = numpy.ascontiguousarray(states).reshape(-1)
    return torch.from_numpy((flat if flat.flags.writeable else flat.copy()).view(numpy.uint8))


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _checked_offsets(values: Tensor, offsets: Tensor) -> Tensor:
    """The offsets of a ragged pair. They are always checked: a wrong one would read memory that is not a state."""
    name = "states[1] (offsets)"

    def fail(expected: str, got: Any, fix: str):
        checks.fail(FUNCTION, name, expected, got, fix)

    if values.ndim == 0:
        checks.fail(FUNCTION, "states[0] (values)", "(total, ...)", values, "pass the concatenated values of all states")
    checks.tensor(FUNCTION, name, offsets, shape=(None,), dtypes=(torch.int64, torch.int32), device=values.device)
    if offsets.numel() == 0:
        fail("at least one entry, 0", offsets, "S states need S + 1 offsets, the first 0")
    if offsets.dtype == torch.int32 and values.numel() * values.element_size() > 2**31 - 1:
        fail("int64 for more than 2**31 - 1 bytes", offsets, "use offsets.to(torch.int64), built without int32 overflow")
    falls = offsets[1:] < offsets[:-1]
    first, last, falling = torch.stack([offsets[0], offsets[-1], falls.sum().to(offsets.dtype)]).tolist()  # one wait for the device
    if first != 0:
        fail("0 at index 0", first, "the first state begins at 0")
    if falling:
        index = int(falls.nonzero()[0, 0]) + 1
        fail(f"non-decreasing, but it falls at index {index}", int(offsets[index]), "offsets are a running sum of lengths")
    if last != values.shape[0]:
        fail(f"{values.shape[0]} (the number of values) at index {offsets.numel() - 1}", last, "the last offset ends the last state")
    return offsets
