"""JSON Lines (gzipped or not) and JSON, one object after the other. Only one line is held at a time.

What is not whole, not text or not JSON raises with file and line.
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from .. import checks
from .places import Place, fail

LONGEST_LINE = 1 << 26  # bytes: a longer line is no record of a step, and must not fill the memory
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def json_lines(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    for line, raw in _raw_lines(path):
        place = Place(path, line)
        text = _decoded(place, raw).strip()
        if text:
            yield place, _object(place, _parsed(place, text))


def document(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """A file named .json: one document (an object, or a list of them) or, as some write it, JSON Lines."""
    raw = [data for _, data in _raw_lines(path)]
    place = Place(path, 1)
    try:
        json.loads(raw[0] if raw else b"")
        several = len(raw) > 1 and bool(raw[1].strip())
    except (ValueError, RecursionError):
        several = False
    if several:
        yield from json_lines(path)
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
