"""What every block of an objective is: a frozen dataclass that declares its scope and can be written as text.

A custom op takes no Python objects. So an objective travels as a string that names its classes and literals, and
one small CPU tensor that holds its numbers: a scheduled coefficient changes only the tensor. Classes defined
outside the package register themselves by being subclasses.
"""

import ast
import dataclasses
import enum
import importlib
from collections.abc import Iterable
from typing import Any, ClassVar

from ..settings import Settings

_classes: dict[str, type["Block"]] = {}


class Scope(enum.IntEnum):
    """How far one token's coefficient reaches: which tokens must be known before d loss / d log_prob of one is."""

    TOKEN = 0
    SEQUENCE = 1
    BATCH = 2


class Block(Settings):
    """Base of all blocks. Subclasses are `@dataclasses.dataclass(frozen=True)` and hold numbers, booleans, None or blocks.

    A field that is annotated as a float holds one, whatever number it is given: `sharpness: float = 5.0`. One with bounds is
    `sharpness: float = number(5.0, above=0)`.
    """

    scope: ClassVar[Scope] = Scope.TOKEN
    known_on_policy: ClassVar[bool] = False  # where every ratio is exactly 1, its share of dL/dratio needs no log-prob
    zero_at_zero_advantage: ClassVar[bool] = False  # value and gradient vanish where all advantages of the scope are 0
    needs_sequences: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()  # names in `extras`
    _key: ClassVar[str]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        key = f"{cls.__module__}:{cls.__qualname__}"
        while key in _classes:  # the same name defined again, in a notebook or a test function, is another class
            key += "'"
        _classes[key] = cls
        cls._key = key


def declare(block: Block, parts: Iterable[Block | None], **own: Any) -> None:
    """Declare of a composite what follows from its parts: the widest scope, all that they need and read; `own` overrides."""
    parts = [part for part in parts if part is not None]
    found = {
        "scope": max((part.scope for part in parts), default=Scope.TOKEN),
        "known_on_policy": all(part.known_on_policy for part in parts),
        "zero_at_zero_advantage": all(part.zero_at_zero_advantage for part in parts),
        "needs_sequences": any(part.needs_sequences for part in parts),
        "needs_entropy": any(part.needs_entropy for part in parts),
        "needs_reference": any(part.needs_reference for part in parts),
        "reads": tuple(dict.fromkeys(name for part in parts for name in part.reads)),
    }
    for name, value in {**found, **own}.items():
        object.__setattr__(block, name, value)


def write(value: Any, numbers: list[float]) -> str:
    """The structure of a block as text; floats go to `numbers` and leave their index behind."""
    if isinstance(value, Block):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        inner = "".join(f", {field.name}={write(getattr(value, field.name), numbers)}" for field in fields)
        return f"block({value._key!r}{inner})"
    if isinstance(value, tuple):
        return "(" + "".join(f"{write(item, numbers)}, " for item in value) + ")"
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    if isinstance(value, float):
        numbers.append(value)
        return f"number({len(numbers) - 1})"
    raise TypeError(
        f"objective: a block field must be a number, bool, str, None, tuple or block, got {type(value).__name__} {value!r}; "
        "pass tensors through extras"
    )


def read(structure: str, numbers: tuple[float, ...]) -> Any:
    """The inverse of `write`."""

    def build(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Tuple(elts=items):
                return tuple(build(item) for item in items)
            case ast.Call(func=ast.Name(id="number"), args=[ast.Constant(value=index)]):
                return numbers[index]
            case ast.Call(func=ast.Name(id="block"), args=[ast.Constant(value=key)], keywords=fields):
                return _find(key)(**{field.arg: build(field.value) for field in fields})
        raise ValueError(f"objective: cannot read {ast.dump(node)} in {structure!r}")

    return build(ast.parse(structure, mode="eval").body)


def _find(key: str) -> type[Block]:
    if key not in _classes:
        importlib.import_module(key.partition(":")[0])  # another process may not have imported it yet
    return _classes[key]
