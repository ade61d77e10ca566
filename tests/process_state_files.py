"""The calls of process_state_calls.py that leave a file: steps are written and read again."""

import pathlib
import tempfile

import torch

from gigpo_fast import rollouts


def record(b) -> tuple:
    """What a file of the batch's steps says, and what is read from it."""
    columns = {"task": b.names, "trajectory": b.trajectory, "state": b.texts, "reward": b.rewards, "step": torch.arange(24, device="cpu") % 3}
    with tempfile.TemporaryDirectory() as folder:
        path = rollouts.write(pathlib.Path(folder) / "steps.jsonl", columns)
        found = rollouts.read(path)
        return path.read_text(), dict(found.columns), found.labels()
