"""A record of every step on disk: written from what a trainer used, read back, and read from other projects' files.

    rollouts.write("records/000012.jsonl.gz", columns, iteration=12, settings={"gamma": 0.95})     # own loops; or a Recorder
    found = rollouts.read("records")                                                               # a file, a folder, several

One JSON object a step, `gigpo_fast.rollouts/1`; `schema` says what each key means, docs/rollouts.md shows all of it.
"""

from .reader import read
from .schema import Rollouts
from .writer import Recorder, write

__all__ = ["Recorder", "Rollouts", "read", "write"]
