"""Files that only a package can open: Parquet by pyarrow, .pt by torch without its pickles, .eval by Inspect AI.

Nothing is unpickled: torch loads tensors and plain values alone.
"""

import importlib
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from .places import Place, fail

_ROWS = 1024  # read at a time


def parquet(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows of a Parquet file."""
    reader = _package(path, "pyarrow.parquet", "pyarrow")
    number = 0
    try:
        for batch in reader.ParquetFile(path).iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Place(path, number, "row"), row
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        if not type(error).__module__.startswith("pyarrow"):
            raise
        fail(Place(path, number + 1, "row"), "the file", "a whole Parquet file", f"{type(error).__name__}: {error}", "copy it again")


def torch_file(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """What a .pt file holds, as one object."""
    place = Place(path, 1, "object")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        got = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        fail(place, "the file", "tensors and plain values alone", got, "save plain dicts: objects run code when loaded, so they are not")
    if not isinstance(found, dict):
        fail(place, "the file", "a dict of samples", f"a {type(found).__name__}", "write JSON Lines (docs/rollouts.md)")
    yield place, found


def inspect_log(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """An Inspect AI log, by its own package: its .eval files are archives of a kind that Python before 3.14 cannot open."""
    package = _package(path, "inspect_ai.log", "inspect_ai")
    try:
        log = package.read_eval_log(str(path), resolve_attachments=True)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        fail(Place(path, 1, "log"), "the file", "a whole Inspect AI log", f"{type(error).__name__}: {error}", "copy it again")
    yield Place(path, 1, "log"), log.model_dump(mode="json")


def _package(path: pathlib.Path, module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = f"pip install {name}, or convert the file to JSON Lines"
        return fail(path, "the package", f"{name}, which opens {path.suffix} files", f"{error}", fix, error=ImportError)
