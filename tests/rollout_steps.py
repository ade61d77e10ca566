"""The recorded rollouts as the anchor tests need them: texts, tasks, trajectories and true states of all steps."""

import functools
import gzip
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "examples" / "rollouts", ROOT / "tests" / "data" / "rollouts")


@functools.cache
def steps(environment: str) -> tuple[dict, ...]:
    """The step records of one environment."""
    path = next(folder / f"{environment}.jsonl.gz" for folder in FOLDERS if (folder / f"{environment}.jsonl.gz").exists())
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(record for record in map(json.loads, lines) if record["type"] == "step")


def column(environment: str, name: str) -> list:
    """One field of every step."""
    return [record[name] for record in steps(environment)]
