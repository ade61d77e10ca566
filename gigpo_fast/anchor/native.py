"""The C++ path: states on a CPU, lists of str and bytes read where they lie."""

import ctypes
import functools

import torch
from torch import Tensor

from .. import backend
from ..types import StateGroups
from .rows import Objects, Packed


def group(rows: Objects | Packed, labels: Tensor | None, *, bytes_decide: bool, seed: int, hash_bits: int) -> StateGroups:
    """Group the rows of one form; labels (S,) int64 on the CPU, or None for one group."""
    if isinstance(rows, Objects):
        return _group_list(rows.items, labels, bytes_decide, seed, hash_bits)
    labels = torch.zeros_like(rows.starts) if labels is None else labels
    return StateGroups(*_operator()(rows.data, rows.starts, rows.lengths, labels, seed, hash_bits, bytes_decide))


def _group_list(items: list, labels: Tensor | None, bytes_decide: bool, seed: int, hash_bits: int) -> StateGroups:
    ids, first_row, counts = (torch.empty(len(items), dtype=torch.int64) for _ in range(3))
    address = None if labels is None else labels.data_ptr()
    found = _function()(items, address, ids.data_ptr(), first_row.data_ptr(), counts.data_ptr(), seed, hash_bits, bytes_decide)
    return StateGroups(ids, first_row[:found].clone(), counts[:found].clone())


@functools.cache
def _function():
    # PyDLL keeps the interpreter locked during the call, because the function reads Python objects; CDLL would release it.
    function = ctypes.PyDLL(str(backend.native_library())).gigpo_fast_group_list
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.py_object, *[pointer] * 4, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = ctypes.c_int64
    return function


@functools.cache
def _operator():
    name = "gigpo_fast_C::group_packed"

    @torch.library.register_fake(name)
    def _(data, starts, lengths, group, seed, hash_bits, bytes_decide):
        found = torch.library.get_ctx().new_dynamic_size()
        return torch.empty_like(starts), starts.new_empty(found), starts.new_empty(found)

    return torch.ops.gigpo_fast_C.group_packed
