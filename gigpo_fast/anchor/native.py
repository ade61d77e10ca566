"""The C++ path: states on a CPU, lists of str and bytes read where they lie."""

import ctypes
import functools

import torch
from torch import Tensor

from .. import backend, native_memory
from ..once import once
from ..types import StateGroups
from .hash_key import HashKey
from .rows import FixedWidth, Packed


def group(rows: Packed | FixedWidth, labels: Tensor | None, *, bytes_decide: bool, key: HashKey) -> StateGroups:
    """Group the rows of a buffer; labels (S,) int64 on the CPU, or None for one group."""
    fixed = isinstance(rows, FixedWidth)
    shape = (rows.count, rows.width, None, None) if fixed else (rows.starts.numel(), 0, rows.starts.contiguous(), rows.lengths.contiguous())
    labels = None if labels is None else labels.contiguous()
    return StateGroups(*native_memory.call("group_states", _operators().group_packed, rows.data, *shape, labels, *key, bytes_decide))


def group_list(items: list, labels: Tensor | None, *, bytes_decide: bool, key: HashKey) -> StateGroups | None:
    """The same for a list of str and bytes objects; None if it holds anything else."""
    ids = torch.empty(len(items), dtype=torch.int64, device="cpu")
    labels = None if labels is None else labels.contiguous()
    group_them, describe_them = _functions()
    place = None if labels is None else labels.data_ptr()
    found = native_memory.call("group_states", group_them, items, place, ids.data_ptr(), *key, bytes_decide)
    if found < 0:
        return None
    first_row, counts = ids.new_empty(found), ids.new_empty(found)
    describe_them(ids.data_ptr(), len(ids), found, first_row.data_ptr(), counts.data_ptr())
    return StateGroups(ids, first_row, counts)


@functools.cache
def _functions():
    # PyDLL keeps the interpreter locked during a call, because the first function reads Python objects; CDLL would release it.
    # Beside its few passes over the rows, a torch operator would cost more than the second.
    library = ctypes.PyDLL(str(backend.native_library()))
    group, describe = library.gigpo_fast_group_list, library.gigpo_fast_describe_groups
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    group.argtypes = [ctypes.py_object, pointer, pointer, number, number, number, number, ctypes.c_int]
    group.restype = number
    describe.argtypes, describe.restype = [pointer, number, number, pointer, pointer], None
    return group, describe


@once
def _operators():
    @torch.library.register_fake("gigpo_fast_C::group_packed")
    def _(data, total, width, starts, lengths, group, seed, sip_low, sip_high, hash_bits, bytes_decide):
        found = torch.library.get_ctx().new_dynamic_size()
        return tuple(torch.empty(size, dtype=torch.int64, device="cpu") for size in (total, found, found))

    return torch.ops.gigpo_fast_C
