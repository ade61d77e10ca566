"""The C++ path: states on a CPU, lists of str and bytes read where they lie."""

import ctypes
import functools

import torch
from torch import Tensor

from .. import backend
from ..types import StateGroups
from .hash_key import HashKey
from .rows import FixedWidth, Packed


def group(rows: Packed | FixedWidth, labels: Tensor | None, *, bytes_decide: bool, key: HashKey) -> StateGroups:
    """Group the rows of a buffer; labels (S,) int64 on the CPU, or None for one group."""
    fixed = isinstance(rows, FixedWidth)
    shape = (rows.count, rows.width, None, None) if fixed else (rows.starts.numel(), 0, rows.starts.contiguous(), rows.lengths.contiguous())
    labels = None if labels is None else labels.contiguous()
    return StateGroups(*_operators().group_packed(rows.data, *shape, labels, *key, bytes_decide))


def group_list(items: list, labels: Tensor | None, *, bytes_decide: bool, key: HashKey) -> StateGroups | None:
    """The same for a list of str and bytes objects; None if it holds anything else."""
    ids = torch.empty(len(items), dtype=torch.int64)
    labels = None if labels is None else labels.contiguous()
    found = _function()(items, None if labels is None else labels.data_ptr(), ids.data_ptr(), *key, bytes_decide)
    return None if found < 0 else StateGroups(ids, *_operators().count_states(ids, found))


@functools.cache
def _function():
    # PyDLL keeps the interpreter locked during the call, because the function reads Python objects; CDLL would release it.
    function = ctypes.PyDLL(str(backend.native_library())).gigpo_fast_group_list
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.py_object, pointer, pointer, number, number, number, number, ctypes.c_int]
    function.restype = number
    return function


@functools.cache
def _operators():
    @torch.library.register_fake("gigpo_fast_C::group_packed")
    def _(data, total, width, starts, lengths, group, seed, sip_low, sip_high, hash_bits, bytes_decide):
        found = torch.library.get_ctx().new_dynamic_size()
        return tuple(torch.empty(size, dtype=torch.int64) for size in (total, found, found))

    @torch.library.register_fake("gigpo_fast_C::count_states")
    def _(ids, found):
        return ids.new_empty(found), ids.new_empty(found)

    return torch.ops.gigpo_fast_C
