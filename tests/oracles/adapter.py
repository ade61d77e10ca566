"""What an adapter is: the one small function that stands between a recorded case and the public functions of gigpo_fast."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .tensors import Case


class Unsupported(Exception):
    """Raised by an adapter for a case that gigpo_fast has no function for; the message says what is missing."""


class Answer(NamedTuple):
    """What gigpo_fast says of a case, under the names of the oracle's outputs."""

    outputs: dict[str, Any]
    slack: dict[str, Tensor] = {}  # added to the tolerance of an output, element by element; only where the adapter gives a reason


class Adapter(NamedTuple):
    """How the cases of one file are answered."""

    answer: Callable[[Case], Answer]
    looser: dict[str, str] = {}  # outputs with a looser tolerance than the rule's, and why
    notes: tuple[str, ...] = ()  # what a reader of the result must know
    excluded: dict[str, str] = {}  # cases that are not compared (gigpo_fast has no such function, or means another answer), and why
    outside: dict[str, str] = {}  # outputs (or patterns such as stats.*) that are the peer's own diagnostics, not our function's result
