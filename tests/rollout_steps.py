"""The recorded rollouts as the anchor tests need them: texts, tasks, trajectories and true states of all steps."""

import functools
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from agent.records import records  # noqa: E402

FOLDERS = (ROOT / "examples" / "rollouts", ROOT / "tests" / "data" / "rollouts")


@functools.cache
def steps(environment: str) -> tuple[dict, ...]:
    """The step records of one environment."""
    path = next(folder / f"{environment}.jsonl.gz" for folder in FOLDERS if (folder / f"{environment}.jsonl.gz").exists())
    return tuple(record for record in records(path) if record["type"] == "step")


def column(environment: str, name: str) -> list:
    """One field of every step."""
    return [record[name] for record in steps(environment)]
