"""One Python value to bytes, so that two values have equal bytes exactly if they are the same state.

Every value carries its type, and everything of variable size its length. Hence True, 1 and 1.0, or "a" and b"a", or arrays of
shapes (2, 3) and (3, 2), never have equal bytes, and no list can be mistaken for a differently nested one. Floats count by their
bits: NaN equals the same NaN, and -0.0 is not 0.0. Dictionaries do not depend on the order of their keys.
"""

import ctypes
import struct
import sys
from typing import Any

from torch import Tensor

LARGEST_C_INT = 2**31 - 1


class Unsupported(Exception):
    """Raised with the name of the type that has no encoding; the caller knows the row. `value` is what has it."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name)
        self.value = value


def encode(value: Any) -> bytes:
    """The canonical bytes of None, bool, int, float, str, bytes, tuple, list, dict, NumPy values and tensors, nested as you like."""
    parts: list[bytes] = []
    _append(parts, value)
    return b"".join(parts)


def _append(parts: list[bytes], value: Any) -> None:
    numpy = sys.modules.get("numpy")  # without NumPy there is no NumPy value
    if value is None or value is True or value is False:
        parts.append({None: b"N", True: b"T", False: b"F"}[value])
    elif isinstance(value, str):
        _append_sized(parts, b"s", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        _append_sized(parts, b"b", value)
    elif isinstance(value, Tensor):
        _append_array(parts, b"t", str(value.dtype), tuple(value.shape), tensor_bytes(value))
    elif numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        _append_numpy(parts, value)
    elif isinstance(value, int):
        _append_sized(parts, b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    elif isinstance(value, float):
        parts.append(b"f" + struct.pack("<d", value))
    elif isinstance(value, (tuple, list)):
        parts.append((b"(" if isinstance(value, tuple) else b"[") + _count(len(value)))
        for item in value:
            _append(parts, item)
    elif isinstance(value, dict):
        parts.append(b"{" + _count(len(value)))
        for key, item in sorted((encode(key), encode(item)) for key, item in value.items()):
            parts += (key, item)
    else:
        raise Unsupported(type(value).__name__, value)


def tensor_bytes(value: Tensor) -> bytes:
    """The elements of a tensor in row-major order, bit for bit."""
    here = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return _bytes_at(here.data_ptr(), here.numel() * here.element_size()) if here.numel() else b""


def _bytes_at(address: int, count: int) -> bytes:
    """A copy of `count` bytes of memory. string_at takes a C int and keeps the low 32 bits of a larger size; an array's size is wide."""
    return ctypes.string_at(address, count) if count <= LARGEST_C_INT else (ctypes.c_char * count).from_address(address).raw


def _append_numpy(parts: list[bytes], value: Any) -> None:
    tag = b"a" if isinstance(value, sys.modules["numpy"].ndarray) else b"g"
    if value.dtype.kind == "V":
        raise Unsupported(f"NumPy structured {value.dtype}", value)  # its padding bytes hold anything
    if value.dtype.kind == "O":
        _append_array(parts, tag, "O", value.shape, b"".join(encode(item) for item in value.reshape(-1).tolist()))
    else:
        _append_array(parts, tag, value.dtype.str, value.shape, value.tobytes())


def _append_array(parts: list[bytes], tag: bytes, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    _append_sized(parts, tag, dtype.encode())
    parts.append(_count(len(shape)))
    parts += [_count(size) for size in shape]
    _append_sized(parts, b"", data)


def _append_sized(parts: list[bytes], tag: bytes, data: bytes) -> None:
    parts += (tag, _count(len(data)), data)


def _count(number: int) -> bytes:
    return struct.pack("<q", number)
