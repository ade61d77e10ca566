"""Reading the recorded format: gzip-ed JSON of cases, whose tensors are {"dtype", "shape", "data"} in row-major order."""

import functools
import gzip
import json
import pathlib
from typing import Any, NamedTuple

import torch

from tests.rollout_steps import records

_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "bool")}


class Case(NamedTuple):
    """One recorded call: tensors are torch tensors, labels are lists, a missing argument is None."""

    name: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]  # metrics too: flat, by their names


def read_cases(path: pathlib.Path, rollouts: list[pathlib.Path]) -> list[Case]:
    """All cases of a file. A case that names a rollout file gets its steps as inputs."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        recorded = json.load(file)["cases"]
    cases = []
    for case in recorded:
        inputs = _decode(case.get("inputs", {}))
        if "rollouts" in case:
            inputs["steps"] = _find_rollouts(case["rollouts"], rollouts)
        outputs = _decode(case["outputs"])
        outputs.update(outputs.pop("metrics", None) or {})
        outputs = _flat(outputs)
        cases.append(Case(case["name"], _decode(case.get("config", {})), inputs, outputs))
    return cases


@functools.lru_cache(maxsize=16)
def read_steps(path: pathlib.Path) -> list[dict]:
    """The "step" lines of a rollout file, in file order; a file with something wrong in it raises."""
    return [record for record in records(path) if record["type"] == "step"]


def _flat(outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs inside outputs under one name each: {"a": {"b": 1}, "c": [{"d": 2}]} becomes {"a.b": 1, "c.0.d": 2}."""
    flat = {}
    for name, value in outputs.items():
        lists = isinstance(value, list) and value and all(isinstance(item, list) for item in value)
        ragged = lists and len({len(item) for item in value}) > 1
        if ragged or (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": item for key, item in _flat(value).items()})
        else:
            flat[name] = value
    return flat


def _find_rollouts(name: str, folders: list[pathlib.Path]) -> pathlib.Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dtype", "shape", "data"}:
            if value["dtype"] not in _DTYPES:
                return value["data"]  # "object": labels
            data = [float(item) if isinstance(item, str) else item for item in value["data"]]  # "inf", "-inf", "nan"
            return torch.tensor(data, dtype=_DTYPES[value["dtype"]]).reshape(value["shape"])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
