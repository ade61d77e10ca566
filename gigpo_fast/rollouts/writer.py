"""Writing records: whole files only, one an iteration, by one rank."""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from . import schema

_KEYS = ", ".join(schema.KEYS)


def write(
    path: str | os.PathLike,
    columns: Mapping[str, Sequence | Tensor],  # S values each
    *,
    iteration: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write S steps as one file of records: gzipped if `path` ends in .jsonl.gz, plain if in .jsonl.

    Slow equivalent: one `json.dumps({name: column[i] for name, column in columns.items()})` a line, after a header with the settings.
    `columns` needs task, trajectory, state and reward; the other keys are those of the schema, None where a step does not have one.
    Tensors are copied to the CPU, arrays inside `state` become lists. The file appears whole under its name or not at all: it is written
    beside it and renamed. The same steps give the same bytes. Raises for keys that the schema lacks and for values that do not fit it.
    """
    path = pathlib.Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        _fail("path", "a name that ends in .jsonl.gz or .jsonl", path.name, "readers go by the name")
    lines = _lines(columns)
    header: dict[str, Any] = {"type": schema.VERSION}
    if iteration is not None:
        header["iteration"] = checks.integer("rollouts.write", "iteration", iteration, at_least=0, fix="count from 0")
    if settings is not None:
        header["settings"] = {name: _setting(value) for name, value in settings.items()}
    data = "\n".join([_dumps("settings", 0, header), *lines, ""]).encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # readers leave out hidden names
    try:
        # Level 1: a third of the time of level 6, and a tenth larger. mtime 0: equal steps, equal bytes.
        beside.write_bytes(gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Writes every n-th iteration of a training into a folder, on rank 0 alone: folder/000012.jsonl.gz, see `write`.

    The rank is torch.distributed's where a group runs, else the environment variable RANK, else 0. An iteration that is run again, after
    a resume, replaces its file; give every run a folder of its own.
    """

    folder: str | os.PathLike
    every: int = 1

    def __post_init__(self) -> None:
        checks.integer("Recorder", "every", self.every, at_least=1, fix="1 records every iteration")

    def wanted(self, iteration: int) -> bool:
        """True where `save` would write, so that others need not collect what it is given."""
        return iteration % self.every == 0 and _rank() == 0

    def save(self, iteration: int, columns: Mapping[str, Sequence | Tensor], *, settings: Mapping[str, Any] | None = None) -> str | None:
        """Write this iteration's steps if it is wanted; the file's path, or None."""
        if not self.wanted(iteration):
            return None
        path = pathlib.Path(self.folder) / f"{iteration:06d}.jsonl.gz"
        return str(write(path, columns, iteration=iteration, settings=settings))


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _lines(columns: Mapping[str, Sequence | Tensor]) -> list[str]:
    unknown = [name for name in columns if name not in schema.KEYS]
    if unknown:
        _fail("columns", f"made of {_KEYS}", f"also {', '.join(map(str, unknown))}", "leave them out, or write them to a file of your own")
    absent = [name for name, key in schema.KEYS.items() if key.required and name not in columns]
    if absent:
        _fail("columns", "task, trajectory, state and reward at least", f"none of {', '.join(absent)}", "pass one value a step")
    values = {name: _column(name, column) for name, column in columns.items()}
    size = len(values["task"])
    for name, column in values.items():
        if len(column) != size:
            _fail(f"columns[{name!r}]", f"{size} values, as task has", f"{len(column)} values", "pass one value a step")
    rows = zip(*values.values())
    return [_dumps("state", i, {name: v for name, v in zip(values, row) if v is not None}) for i, row in enumerate(rows)]


def _column(name: str, column: Sequence | Tensor) -> list:
    key = schema.KEYS[name]
    values = column.tolist() if hasattr(column, "tolist") and name not in ("state", "truth", "next_state") else list(column)
    for i, value in enumerate(values):
        if value is None and not key.required:
            continue
        value = value.item() if hasattr(value, "item") and name not in ("state", "truth", "next_state") else value
        found = key.read(value)
        if found is None:
            fix = "pass what the trainer used" if name != "reward" else "0.0 where a step earned nothing; leave a broken trajectory out"
            _fail(f"columns[{name!r}][{i}]", key.expected, value, fix, error=ValueError if isinstance(value, float) else TypeError)
        values[i] = schema.special(found) if name in schema.FLOATS else found
    return values


def _dumps(name: str, row: int, record: dict) -> str:
    try:
        return _encode(record)
    except (TypeError, ValueError, RecursionError) as error:
        return _fail(f"{name} of row {row}", "a value that JSON can hold", f"{type(error).__name__}: {error}", "record it as a text")


def _json(value: Any) -> Any:
    """What JSON does not know but can hold: arrays and tensors as nested lists, bytes as hexadecimal digits."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_encode = json.JSONEncoder(allow_nan=False, default=_json).encode  # made once: json.dumps would make one a step


def _setting(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _fail(argument: str, expected: str, got: Any, fix: str, *, error: type[Exception] = ValueError) -> Any:
    checks.fail("rollouts.write", argument, expected, got, fix, error=error)
