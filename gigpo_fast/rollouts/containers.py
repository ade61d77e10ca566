"""From a path to the files of rollouts in it, and from a file to its objects, whatever the container."""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from .json_files import document, json_lines
from .packaged import inspect_log, parquet, torch_file
from .places import Place, fail

_OPEN: dict[str, Callable[[pathlib.Path], Iterator[tuple[Place, dict[str, Any]]]]] = {
    ".jsonl": json_lines,
    ".jsonl.gz": json_lines,
    ".ndjson": json_lines,
    ".ndjson.gz": json_lines,
    ".json": document,
    ".json.gz": document,
    ".parquet": parquet,
    ".pt": torch_file,
    ".eval": inspect_log,
}
SUFFIXES = tuple(_OPEN)


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
    return next(opened for suffix, opened in _OPEN.items() if path.name.endswith(suffix))(path)
