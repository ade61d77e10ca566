"""What to do with a value that has no encoding: a conversion whose result is equal for equal values, whatever their type."""

import collections.abc
import dataclasses
import enum
import sys
from typing import Any

from .encoding import Unsupported, encode


def advice(value: Any) -> str:
    """What stands behind "; " in a message, for a value that `encode` refuses. str() of most objects holds their address."""
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"compare the fields of {name}: dataclasses.asdict(state), for example as key=dataclasses.asdict"
    if isinstance(value, (collections.abc.Set, collections.abc.KeysView)):
        return f"compare the sorted elements of {name}: sorted(state, key=repr), for example in a key="
    if isinstance(value, collections.abc.Mapping):
        return "compare it as a dict: dict(state), for example as key=dict"
    if isinstance(value, (bytearray, memoryview)):
        return "compare its bytes: bytes(state), for example as key=bytes"
    if isinstance(value, (collections.abc.Sequence, collections.abc.ValuesView, collections.deque)):
        return "compare its elements: list(state), for example as key=list"
    if isinstance(value, complex):
        return "compare its parts: (state.real, state.imag), for example in a key="
    if _structured(value):
        return "compare its fields: state.tolist(), for example in a key="
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # images, data frames
        return f"compare what {name} holds: numpy.asarray(state), for example as key=numpy.asarray"
    says_itself = isinstance(value, enum.Enum) or type(value).__eq__ is not object.__eq__
    if says_itself and not holds_address(value, str(value)):
        return "compare its text: str(state), for example as key=str"
    if _encodable(getattr(value, "__dict__", None)):
        return f"compare the attributes of {name}: vars(state), for example as key=vars"
    return f"compare the parts of {name} that make two states equal, for example a tuple of them in a key="


def holds_address(value: Any, text: str) -> bool:
    """True where `text`, made of `value`, names its place in memory, so that equal values have unequal texts."""
    return format(id(value), "x") in text.lower()


def _structured(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind == "V"


def _encodable(value: Any) -> bool:
    if not value:
        return False
    try:
        encode(value)
    except Unsupported:
        return False
    return True
