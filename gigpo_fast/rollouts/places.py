"""Where a record stands, and the one message form with that place in it."""

import pathlib
from typing import Any, NamedTuple, NoReturn

from .. import checks

FUNCTION = "rollouts.read"


class Place(NamedTuple):
    """Where a record stands, for messages."""

    path: pathlib.Path
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.line}"


def fail(place: Any, argument: str, expected: str, got: Any, fix: str, *, error: type[Exception] = ValueError) -> NoReturn:
    """The one message form, with the place in a file."""
    checks.fail(FUNCTION, f"{place}: {argument}", expected, got, fix, error=error)
