"""From a path to the objects in its files, one after the other: JSON Lines (gzipped or not) and JSON.

Only one line is held at a time. What is not whole, not text or not JSON raises with file and line. Nothing is ever unpickled.
"""

import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from .. import checks

FUNCTION = "rollouts.read"
LONGEST_LINE = 1 << 26  # bytes: a longer line is no record of a step, and must not fill the memory
_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz")
SUFFIXES = _LINES
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


class Place(NamedTuple):
    """Where a record stands, for messages."""

    path: pathlib.Path
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.line}"


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """The rollout files of a path: itself, or those in a folder, 2 before 12; hidden names (half-written files) are left out."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            fail(path, "a file", f"one of {', '.join(SUFFIXES)}", path.name, "convert it to JSON Lines (docs/rollouts.md)")
        return [path]
    if not path.is_dir():
        fail(path, "the path", "a file or a folder", "nothing of that name", "correct it", error=FileNotFoundError)
    inside = [file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES) and not file.name.startswith(".")]
    if not inside:
        folders = ", ".join(sorted(file.name for file in path.iterdir() if file.is_dir())[:5])
        got = f"none of {', '.join(SUFFIXES)}" + (f", but the folders {folders}" if folders else "")
        fail(path, "the folder", "one with rollout files directly in it", got, "name the folder or the files that hold the rollouts")
    return sorted(inside, key=lambda file: [(part.isdigit(), int(part) if part.isdigit() else part) for part in _parts(file.name)])


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"([0-9]+)", name) if part]


def objects(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, object) of everything a file holds, in its order."""
    if path.name.endswith((".json", ".json.gz")):
        return _document(path)
    return _json_lines(path)


def _json_lines(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    for line, raw in _raw_lines(path):
        place = Place(path, line)
        text = _decoded(place, raw).strip()
        if text:
            yield place, _object(place, _parsed(place, text))


def _document(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """A file named .json: one document (an object, or a list of them) or, as some write it, JSON Lines."""
    raw = [data for _, data in _raw_lines(path)]
    place = Place(path, 1)
    try:
        json.loads(raw[0] if raw else b"")
        several = len(raw) > 1 and bool(raw[1].strip())
    except (ValueError, RecursionError):
        several = False
    if several:
        yield from _json_lines(path)
        return
    found = _parsed(place, _decoded(place, b"".join(raw)))
    for number, entry in enumerate(found if isinstance(found, list) else [found], 1):
        yield Place(path, number, "entry"), _object(Place(path, number, "entry"), entry)


def _raw_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    line = 0
    with open(path, "rb") as probe:
        opener: Any = gzip.open if probe.read(2) == b"\x1f\x8b" else open
    try:
        with opener(path, "rb") as source:
            while raw := source.readline(LONGEST_LINE + 1):
                line += 1
                if len(raw) > LONGEST_LINE:
                    fail(Place(path, line), "the line", f"at most {LONGEST_LINE} bytes long", "a longer one", "write one object a line")
                yield line, raw
    except _DAMAGED as error:
        got = f"{type(error).__name__}: {error}"
        fail(Place(path, line + 1), "the file", "whole, if it is gzipped", got, "copy or record it again")


def _decoded(place: Place, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if place.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return fail(place, "the text", "UTF-8", str(error), "write it as UTF-8")


def _parsed(place: Place, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return fail(place, "the text", "JSON", f"{type(error).__name__}: {error} in {text[:40]!r}", "write one JSON object a line")


def _object(place: Place, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        fail(place, "each entry", "a JSON object", f"{type(value).__name__} {checks.describe(value)}", "write one JSON object a line")
    return value


def fail(place: Any, argument: str, expected: str, got: Any, fix: str, *, error: type[Exception] = ValueError) -> NoReturn:
    """The one message form, with the place in a file."""
    checks.fail(FUNCTION, f"{place}: {argument}", expected, got, fix, error=error)
