"""States that have no encoding: what the message advises, followed, gives equal keys to equal states and others to other ones."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import re
import types
import uuid

import pytest

from gigpo_fast.anchor import group_states

np = pytest.importorskip("numpy", reason="arrays among the states need NumPy")


@dataclasses.dataclass
class Place:
    room: str
    inventory: list


class Attributes:
    def __init__(self, room):
        self.room = room


class Slots:
    __slots__ = ("room",)

    def __init__(self, room):
        self.room = room


class Image:
    """As PIL's: an array interface, an equality, and a text that holds the address."""

    def __init__(self, pixel):
        self.pixel = pixel

    def __array__(self, dtype=None, copy=None):
        return np.full((2, 2), self.pixel, np.uint8)

    def __eq__(self, other):
        return self.pixel == other.pixel

    def __repr__(self):
        return f"<Image at 0x{id(self):X}>"


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


PAIRS = {  # how to make a state, from 0 or 1
    "dataclass": lambda i: Place("hall" if i else "room", ["key", i]),
    "attributes": lambda i: Attributes("hall" if i else "room"),
    "image": Image,
    "set": lambda i: {"b", "a", str(i)},
    "frozenset": lambda i: frozenset((1, "a", i + 5)),
    "dict keys": lambda i: {"b": 0, str(i): 1}.keys(),
    "mapping": lambda i: types.MappingProxyType({"room": i}),
    "range": lambda i: range(3 + i),
    "deque": lambda i: collections.deque([1, i]),
    "bytearray": lambda i: bytearray([1, i]),
    "memoryview": lambda i: memoryview(bytes([1, i])),
    "complex": lambda i: 1 + 1j * i,
    "structured": lambda i: np.array([(1, i)], dtype=[("x", "i1"), ("y", "i8")])[0],
    "uuid": lambda i: uuid.UUID(int=7 + i),
    "decimal": lambda i: decimal.Decimal(i),
    "fraction": lambda i: fractions.Fraction(1, 2 + i),
    "date": lambda i: datetime.date(2020, 1, 1 + i),
    "enum": lambda i: Colour.BLUE if i else Colour.RED,
}
SCOPE = {"dataclasses": dataclasses, "numpy": np}


def refused(states, **options):
    with pytest.raises(TypeError, match=r"^group_states: states\[0\] must be made of None, bool") as found:
        group_states(states, **options)
    return str(found.value)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_advice_followed_gives_equal_keys_for_equal_states(kind):
    states = [PAIRS[kind](i) for i in (0, 1, 0, 1)]
    message = refused(states)
    conversion = re.search(r": ([^ ]*\(state[^;]*?\)|\(state\.real, state\.imag\)|state\.\w+\(\)), for example", message)
    assert conversion is not None, message
    assert group_states(states, key=lambda state: eval(conversion.group(1), SCOPE, {"state": state})).ids.tolist() == [0, 1, 0, 1]
    short = re.search(r"for example as key=([\w.]+)$", message)
    if short:
        assert group_states(states, key=eval(short.group(1), SCOPE)).ids.tolist() == [0, 1, 0, 1]
    nested = [{"seen": state, "turn": 1} for state in states]  # the advice is that of what is inside
    assert conversion.group(1) in refused(nested)


def test_an_object_that_says_nothing_of_itself():
    message = refused([Slots("room"), Slots("room")])
    assert message.endswith("compare the parts of Slots that make two states equal, for example a tuple of them in a key=")
    assert group_states([Slots("room"), Slots("hall"), Slots("room")], key=lambda state: (state.room,)).ids.tolist() == [0, 1, 0]
    assert "compare the parts of Attributes" in refused([Attributes(Slots("room"))])  # vars() would be refused in its turn


@pytest.mark.parametrize("make", [Image, Attributes, Slots])
def test_a_key_that_holds_the_address_is_refused(make):
    states = [make(0), make(1), make(0)]
    with pytest.raises(ValueError, match=r"key\(states\[0\]\) must be what the state holds.*which holds the address of the object; compare"):
        group_states(states, key=str)
