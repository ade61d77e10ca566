"""Files of rollouts, of this and other projects, as one value: columns of steps, their settings, and what the files cannot tell."""

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import checks
from . import containers, schema
from .formats import FORMATS
from .places import FUNCTION, Place, fail
from .table import Table

_NAMES = tuple(form.NAME for form in FORMATS)
_DERIVED = ("_task", "_trajectory", "_reward", "_step", "_iteration")  # what a format adds to a record for COLUMNS
_OF_RECORD = ("iteration", "task", "trajectory", "reward", "success")


def read(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    action_pattern: str | None = None,
) -> schema.Rollouts:
    """Read rollouts from a file, a folder or several of them; several files are the iterations of one training.

    Slow equivalent: `sorted((json.loads(line) for line in file), key=lambda step: (step["task"], step["trajectory"], step["step"]))`

    format: "auto" goes by the first record. columns: where a record keeps a key of the schema if not under its own name, such as
    {"state": "state_text"}; "a.b" is b inside a. Needed for what a format does not say, such as {"task": "prompt"} where the file has no
    task. action_pattern: a regular expression whose first group (or whole match) in an action or answer is the action.
    Raises with file and line for what is damaged or does not fit the schema, and for a step that is there twice. `missing` of the result
    says what the files cannot tell. Never unpickles.
    """
    if format != "auto" and format not in _NAMES:
        checks.fail(FUNCTION, "format", f"one of {('auto', *_NAMES)}", format, "leave it out to go by the first record")
    unknown = sorted(set(columns or {}) - set(schema.KEYS))
    if unknown:
        checks.fail(FUNCTION, "columns", f"for keys among {', '.join(schema.KEYS)}", f"also {', '.join(unknown)}", "correct the name")
    pattern = _pattern(action_pattern)
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found = [file for path in given for file in containers.files(pathlib.Path(path))]
    if not found:
        checks.fail(FUNCTION, "paths", "one file or folder at least", "none", "name a file of rollouts")
    if len({file.resolve() for file in found}) < len(found):
        checks.fail(FUNCTION, "paths", "each file once", "one file twice", "leave it out once")
    table = Table()
    for number, path in enumerate(found):
        _read_file(table, path, number, format, columns or {}, pattern)
    if not len(table):
        got = "none in " + ", ".join(map(str, found[:3]))
        checks.fail(FUNCTION, "paths", "files with at least one step", got, 'steps are objects without "type" or of type "step"')
    return table.rollouts()


def _read_file(table: Table, path: pathlib.Path, number: int, format: str, columns: Mapping[str, str], pattern: Any) -> None:
    form, iteration, settings = None, number, None
    for place, entry in containers.objects(path):
        kind = entry.get("type")
        if isinstance(kind, str) and kind.startswith(schema.FAMILY):
            iteration, settings = _header(place, entry, iteration)
            continue
        if form is None:
            form = next(f for f in FORMATS if (f.NAME == format if format != "auto" else f.knows(entry)))
            _check_arguments(place, form, columns, pattern)
        for record in _whole(place, form, form.records, entry):
            steps = _steps(place, form, record, columns, pattern)
            for step in steps:
                table.add(place, {"iteration": iteration} | step, settings)
            table.empty += not steps
    if form is not None:
        table.missing.update(form.MISSING)


def _header(place: Place, entry: dict, iteration: int) -> tuple[int, dict]:
    if entry["type"] != schema.VERSION:
        fail(place, "type", repr(schema.VERSION), entry["type"], "read it with the version of gigpo_fast that wrote it")
    settings = entry.get("settings", {})
    if not isinstance(settings, dict):
        fail(place, "settings", "an object", settings, "write what the trainer used, by name")
    found = schema.KEYS["iteration"].read(entry.get("iteration", iteration))
    if found is None:
        fail(place, "iteration", schema.KEYS["iteration"].expected, entry["iteration"], "count from 0")
    return found, settings


def _check_arguments(place: Place, form: Any, columns: Mapping[str, str], pattern: Any) -> None:
    if pattern is not None and getattr(form, "CONVERSATION", False):
        fail(place, "action_pattern", "None", pattern.pattern, f"a {form.NAME} row is a whole trajectory, which has no single action")
    wrong = sorted(set(columns) - set(_OF_RECORD)) if form.NAME != "jsonl" else []
    if wrong:
        got, fix = f"also {', '.join(wrong)}", f'the {form.NAME} reader finds those itself; or pass format="jsonl" for flat records'
        fail(place, "columns", f"for {', '.join(_OF_RECORD)} alone", got, fix)


def _steps(place: Place, form: Any, record: dict, columns: Mapping[str, str], pattern: Any) -> list[dict[str, Any]]:
    """The steps of one record under the schema's names, checked."""
    places = form.COLUMNS | dict(columns)
    whole = {name: found for name, path in places.items() if (found := _at(record, path)) is not None}
    for name in columns:
        if name not in whole:
            got = f"a record with {_names_of(record)}"
            fail(place, f"columns[{name!r}]", f"a place in every record, as {columns[name]!r} is to be", got, "correct the name")
    if form.NAME != "jsonl":
        whole.setdefault("trajectory", place.line)  # where a record is a trajectory, its place is a name
    steps = []
    found_turns = _whole(place, form, form.turns, record)
    for i, step in enumerate(found_turns):
        step = step if form.NAME == "jsonl" else {"step": i, "reward": 0.0} | step
        step |= whole
        if i < len(found_turns) - 1:
            step["reward"] = 0.0  # a record has one reward, which belongs to its end
        if pattern is not None:
            found = pattern.search(step.get("response") or step.get("action") or "")
            step["action"] = found and found[found.re.groups and 1]
        steps.append(_checked(place, form, record, step))
    return steps


def _whole(place: Place, form: Any, function: Any, record: dict) -> list[dict]:
    """All that a format makes of a record; what is not of its form raises with the place."""
    try:
        return list(function(record))
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        fix = 'if it is of another format, name it: format="..."'
        return fail(place, "the record", f"one of {form.NAME}", f"{type(error).__name__}: {error}", fix)


def _checked(place: Place, form: Any, record: dict, step: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for name, value in step.items():
        if value is None:
            continue
        if name in ("task", "trajectory") and isinstance(value, (list, dict, float, bool)):
            value = json.dumps(value, sort_keys=True)
        found = schema.KEYS[name].read(value)
        if found is None:
            fix = f'say where it is: columns={{"{name}": "KEY"}}' if isinstance(value, (dict, list)) else "leave a broken trajectory out"
            fail(place, name, schema.KEYS[name].expected, value, fix)
        checked[name] = found
    for name, key in schema.KEYS.items():
        if key.required and name not in checked and (name != "state" or form.NAME == "jsonl"):
            fix = form.MISSING.get(name) or f'if another key holds it, columns={{"{name}": "KEY"}}; else record it (docs/rollouts.md)'
            fail(place, name, f"{key.expected} in every step", f"none among {_names_of(record)}", fix)
    return checked


def _names_of(record: dict) -> str:
    return ", ".join([name for name in record if name not in _DERIVED][:20])


def _at(record: dict, path: str) -> Any:
    """What a path "a.b" leads to, None where it leads nowhere; a key that has that very name goes first."""
    if path in record:
        return record[path]
    found: Any = record
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _pattern(text: str | None) -> Any:
    try:
        return None if text is None else re.compile(text, re.DOTALL)
    except re.error as error:
        return checks.fail(FUNCTION, "action_pattern", "a regular expression", text, f"{error}; such as r'<action>(.*?)</action>'")
