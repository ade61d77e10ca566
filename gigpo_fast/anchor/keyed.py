"""`key=` of group_states: what a function of the user makes of each state is compared in the state's place."""

from collections.abc import Callable
from typing import Any

from .. import checks
from . import rows as inputs
from .advice import advice, holds_address
from .encoding import Unsupported, encode

PLAIN = (str, bytes, int, float, type(None))


def keyed(states: Any, key: Callable[[Any], Any], valid: list[bool] | None) -> list:
    """key(state) of every valid row, None for the others; called once for each distinct text, and never on a row that is not valid."""
    if not callable(key):
        fix = "pass a function of one state, for example anchor.normalise.digits(after='moves:')"
        checks.fail("group_states", "key", "a function or None", key, fix, error=TypeError)
    memo: dict[str | bytes, Any] = {}
    result = []
    for row, state in enumerate(_rows(states)):
        if valid is not None and not valid[row]:
            result.append(None)
        elif type(state) is not str and type(state) is not bytes:
            result.append(_called(key, state, row))
        elif state in memo:
            result.append(memo[state])
        else:
            result.append(memo.setdefault(state, _called(key, state, row)))
    return result


def _rows(states: Any):
    if inputs.is_ragged(states):
        values, bounds = states[0], states[1].tolist()
        return (values[start:end] for start, end in zip(bounds, bounds[1:]))
    return states


def _called(key: Callable[[Any], Any], state: Any, row: int) -> Any:
    name = f"key(states[{row}])"
    try:
        value = key(state)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        try:
            got = f"{type(error).__name__}: {error}"
            checks.fail("group_states", name, "a value", got, f"the key cannot take {checks.describe(state)}", error=kind)
        except kind as ours:
            raise ours from error
    if isinstance(value, str) and holds_address(state, value):
        got = f"{checks.describe(value)}, which holds the address of the object"
        checks.fail("group_states", name, "what the state holds, equal for equal states", got, advice(state))
    if not isinstance(value, PLAIN):
        try:
            encode(value)
        except Unsupported as error:
            got = f"{error} in {checks.describe(value)}"
            checks.fail("group_states", name, inputs.ENCODABLE, got, advice(error.value), error=TypeError)
    return value
