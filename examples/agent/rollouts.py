"""The recorded rollouts: gzipped JSON lines, read into one row a step, the form that the library works on."""

import pathlib
from typing import NamedTuple

import torch
from torch import Tensor

from .records import records

FOLDER = pathlib.Path(__file__).parent.parent / "rollouts"
ENVIRONMENTS = ("textworld", "scienceworld", "frozenlake")


class Rollouts(NamedTuple):
    """S steps of the trajectories of many tasks; the steps of a trajectory stand in time order."""

    environment: str
    observations: list[str]  # S texts, what the agent saw before it acted
    actions: list[str]  # S texts
    rewards: Tensor  # (S,) float64
    trajectory: Tensor  # (S,) int64, into `names`
    group: Tensor  # (S,) int64, the task: its 8 trajectories start from one state; into `tasks`
    names: list[str]  # of trajectories
    solved: list[bool]  # one per trajectory
    tasks: list[str]  # descriptions


def read(environment: str, folder: pathlib.Path = FOLDER) -> Rollouts:
    """All rollouts of one environment; a file with something wrong in it raises, see `records`."""
    found = records(folder / f"{environment}.jsonl.gz")
    steps, trajectories, tasks = ([r for r in found if r["type"] == kind] for kind in ("step", "traj", "task"))
    number = {r["traj_uid"]: i for i, r in enumerate(trajectories)}
    group = {r["task_id"]: i for i, r in enumerate(tasks)}
    return Rollouts(
        environment=environment,
        observations=[r["obs"] for r in steps],
        actions=[r["action"] for r in steps],
        rewards=torch.tensor([r["reward"] for r in steps], dtype=torch.float64),
        trajectory=torch.tensor([number[r["traj_uid"]] for r in steps]),
        group=torch.tensor([group[r["task_id"]] for r in steps]),
        names=list(number),
        solved=[r["success"] for r in trajectories],
        tasks=[r["description"] for r in tasks],
    )
