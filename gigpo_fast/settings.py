"""Settings: the numbers, switches and names that a block, a schedule or a recipe is made with, read once by their annotations.

A number is whatever Python calls a real number (ints and NumPy scalars included) and is held as the float or int that its
annotation names, so that 1 and 1.0 are one setting. Texts, booleans and NaN are no numbers and are refused where they are given.
"""

import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from . import checks

_BOUNDS = "gigpo_fast.bounds"  # the key of a field's metadata


class Bounds(NamedTuple):
    """Between what a number lies, and what to do where it does not."""

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None
    fix: str = ""


class Kind(NamedTuple):
    """What an annotation allows."""

    number: type | None = None  # float or int; None: no number
    numbers: bool = False  # a tuple of floats
    switch: bool = False  # True and False
    text: bool = False
    none: bool = False
    other: bool = False  # something that is not read here, such as a block
    bounds: Bounds = Bounds()


def number(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,  # above this and not equal to it
    fix: str = "",  # what to do instead, for the message
) -> Any:
    """A dataclass field of `Settings` that holds a number within bounds: `sharpness: float = number(5.0, above=0)`.

    Whether it may be None, and whether it is a float or an int, its annotation says.
    """
    return dataclasses.field(default=default, metadata={_BOUNDS: Bounds(low, high, above, fix)})


class Settings:
    """Base of frozen dataclasses whose fields are settings: each is read by its annotation before any __post_init__ of a subclass runs."""

    def __post_init__(self) -> None:
        read_fields(self)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = cls.__dict__.get("__post_init__")
        if own is not None:  # it need not call this class's own, so no block can forget to
            cls.__post_init__ = _after_reading(own)


def _after_reading(own: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(own)
    def post_init(self: Any) -> None:
        read_fields(self)
        own(self)

    return post_init


def read_fields(owner: Any) -> None:
    """Exchange every field of a frozen dataclass for what `read` makes of it."""
    for name, kind in _kinds(type(owner)):
        value = getattr(owner, name)
        found = read(type(owner).__name__, name, value, kind)
        if found is not value:
            object.__setattr__(owner, name, found)


def read(where: str, name: str, value: Any, kind: Kind) -> Any:
    """`value` as its kind says: a float, int, bool, str, tuple of floats or None; anything else raises, unless it is allowed as it is."""
    if value is None and kind.none:
        return None
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # NumPy's has another name in either of its versions
        return bool(value) if kind.switch else _other(where, name, value, kind)
    if kind.text and isinstance(value, str):
        return str(value)
    if kind.numbers and isinstance(value, (tuple, list)):
        return tuple(read(where, name, item, Kind(float, bounds=kind.bounds)) for item in value)
    if kind.number is None:
        return _other(where, name, value, kind)
    found = checks.real(value) if kind.number is float else checks.whole(value)
    if found is None:
        return _other(where, name, value, kind)
    low, high, above, _ = kind.bounds
    if not low <= found <= high or (above is not None and not found > above):
        _refuse(where, name, value, kind, ValueError)
    return found


def kind_of(annotation: Any, bounds: Bounds = Bounds(), namespace: dict[str, Any] | None = None) -> Kind:  # noqa: B008 - a value
    """What an annotation allows; one that cannot be read allows anything."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, namespace or {})
        except Exception:  # noqa: BLE001 - a name that only a type checker knows
            return Kind(other=True)
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation) if union else (annotation,))
    tuples = {member for member in members if typing.get_origin(member) is tuple and set(typing.get_args(member)) <= {float, ...}}
    plain = {float, int, bool, str, type(None)}
    return Kind(
        number=float if float in members else int if int in members else None,
        numbers=bool(tuples),
        switch=bool in members,
        text=str in members,
        none=type(None) in members,
        other=bool(members - tuples - plain),
        bounds=bounds,
    )


def kinds_of_parameters(function: Callable) -> dict[str, Kind]:
    """The kinds of a function's parameters; without an annotation the default's type stands for it."""
    parameters = inspect.signature(function).parameters.values()
    plain = (float, int, bool, str)
    annotations = {
        p.name: p.annotation if p.annotation is not p.empty else type(p.default) if type(p.default) in plain else Any for p in parameters
    }
    return {name: kind_of(annotation, namespace=function.__globals__) for name, annotation in annotations.items()}


@functools.cache
def _kinds(owner: type) -> tuple[tuple[str, Kind], ...]:
    found = []
    for field in dataclasses.fields(owner):
        home = next((base for base in owner.__mro__ if field.name in base.__dict__.get("__annotations__", {})), owner)
        namespace = vars(sys.modules[home.__module__]) if home.__module__ in sys.modules else {}
        found.append((field.name, kind_of(field.type, field.metadata.get(_BOUNDS, Bounds()), namespace)))
    return tuple((name, kind) for name, kind in found if kind != Kind(other=True))


def _other(where: str, name: str, value: Any, kind: Kind) -> Any:
    if kind.other:
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)  # NaN, or a float where an int is wanted
    _refuse(where, name, value, kind, ValueError if is_number else TypeError)


def _refuse(where: str, name: str, value: Any, kind: Kind, error: type[Exception]) -> NoReturn:
    fix = kind.bounds.fix
    if kind.number is not None and isinstance(value, str):
        fix = f"convert it, for example with {kind.number.__name__}(); YAML reads 1e-3 as text, 1.0e-3 as a number"
    raise error(f"{where}: {name} must be {_wanted(kind)}, got {value!r}" + (f"; {fix}" if fix else ""))


def _wanted(kind: Kind) -> str:
    low, high, above, _ = kind.bounds
    least = [f"> {above}"] if above is not None else [f">= {low}"] if low > -math.inf else []
    bounds = " and ".join(least + ([f"<= {high}"] if high < math.inf else []))
    names = [{float: "a number", int: "an int"}.get(kind.number, ""), "numbers in a tuple" if kind.numbers else ""]
    names = [f"{text} {bounds}".rstrip() for text in names if text]
    names += [text for text, allowed in (("True or False", kind.switch), ("text", kind.text), ("None", kind.none)) if allowed]
    return " or ".join(names)
