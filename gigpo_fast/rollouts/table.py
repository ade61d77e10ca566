"""Steps as they are read, put into columns: every trajectory together and in time order, every step once."""

from collections.abc import Mapping
from typing import Any

from . import schema
from .places import Place, fail


class Table:
    """Grows by one step at a time. Equal texts are kept once, since the states of a game come back."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {name: [] for name, key in schema.KEYS.items() if key.required or name == "iteration"}
        self.places: list[Place] = []
        self.settings: dict[int, Mapping[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.empty = 0  # records without a step
        self._texts: dict[str, str] = {}
        self._files: dict[tuple, Place] = {}  # of each trajectory: where it was first met

    def __len__(self) -> int:
        return len(self.places)

    def add(self, place: Place, step: dict[str, Any], settings: Mapping[str, Any] | None) -> None:
        """One checked step, and the settings of its file."""
        size = len(self.places)
        for name, value in step.items():
            column = self.columns.setdefault(name, [])
            column.extend([None] * (size - len(column)))
            column.append(self._texts.setdefault(value, value) if isinstance(value, str) else value)
        self.places.append(place)
        trajectory = step["iteration"], step["task"], step["trajectory"]
        first = self._files.setdefault(trajectory, place)
        if first.path != place.path:
            fix = "give the files of different iterations an `iteration`, or trajectories of several files different names"
            fail(place, f"trajectory {step['trajectory']!r} of task {step['task']!r}", "in one file", f"also in {first}", fix)
        if settings is not None and self.settings.setdefault(step["iteration"], settings) != settings:
            got = f"others than an earlier file of iteration {step['iteration']}"
            fail(place, "settings", "one set for an iteration", got, "read the files of different runs one by one")

    def rollouts(self) -> schema.Rollouts:
        """The columns in order, and what they lack."""
        size = len(self)
        for column in self.columns.values():
            column.extend([None] * (size - len(column)))
        order = self._order()
        columns = {name: [column[i] for i in order] for name, column in self.columns.items()}
        columns = {name: columns[name] for name in schema.KEYS if name in columns and any(value is not None for value in columns[name])}
        missing = self._gaps(columns)
        return schema.Rollouts(columns, self.settings, missing)

    def _order(self) -> list[int]:
        """Iterations by number, tasks and trajectories by first occurrence, steps by number or else by line."""
        tasks: dict[tuple, int] = {}
        trajectories: dict[tuple, int] = {}
        keys, seen = [], {}
        steps = self.columns.get("step") or [None] * len(self)
        for i, (iteration, task, name, step) in enumerate(zip(*(self.columns[k] for k in ("iteration", "task", "trajectory")), steps)):
            trajectory = trajectories.setdefault((iteration, task, name), len(trajectories))
            first = seen.setdefault((trajectory, step), i)
            if first != i and step is not None:
                got = f"also in {self.places[first]}"
                fail(
                    self.places[i],
                    f"step {step} of trajectory {name!r} of task {task!r}",
                    "there once",
                    got,
                    "number them from 0",
                )
            if seen.setdefault(trajectory, step is None) != (step is None):
                fix = "number all steps of a trajectory or none"
                fail(self.places[i], f"step of trajectory {name!r}", "in all its records or in none", "some with it, some without", fix)
            keys.append((iteration, tasks.setdefault((iteration, task), len(tasks)), trajectory, i if step is None else step))
        return sorted(range(len(keys)), key=keys.__getitem__)

    def _gaps(self, columns: dict[str, list]) -> dict[str, str]:
        found = {name: text for name, text in self.missing.items() if name != "task"}  # every step has one by now
        if self.empty:
            found["trajectory"] = f"{self.empty} records hold no answer of the model and are left out of their groups"
        if "action" not in columns:
            found.setdefault("action", "no step says its action: record `action`, or pass action_pattern to take it out of `response`")
        if "advantage" not in columns:
            found["advantage"] = "the files do not hold the advantages that the trainer used, so they can be recomputed only: record them"
        if not self.settings:
            found["settings"] = "no file has a header with the settings used (gamma, step_weight, scale, statistics): write one"
        if len(set(zip(*(columns[name] for name in ("iteration", "task", "trajectory"))))) < len(self):
            found.pop("step", None)  # trajectories of several steps have turns
        if "step" in columns:
            gap = next((i for i in range(1, len(columns["task"])) if _jumps(columns, i)), None)
            if gap is not None:
                where = f"trajectory {columns['trajectory'][gap]!r} of task {columns['task'][gap]!r}"
                found["step"] = f"{where} has no step before {columns['step'][gap]}, so its returns lack a reward: record every step"
        return found


def _jumps(columns: dict[str, list], i: int) -> bool:
    same = all(columns[name][i] == columns[name][i - 1] for name in ("iteration", "task", "trajectory"))
    before, now = columns["step"][i - 1], columns["step"][i]
    return same and now is not None and now != before + 1
