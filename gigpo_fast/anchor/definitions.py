"""Definitions of the state side by side: what each leaves alone, and what each hides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import checks
from .diagnosis import Diagnosis, diagnose


class Definitions(NamedTuple):
    """What `anchor.compare_states` found; `print` it. One diagnosis a definition."""

    found: dict[str, Diagnosis]

    def __str__(self) -> str:
        named = {"state": list(self.found), "groups": [str(each.groups) for each in self.found.values()]}
        shares = {
            "alone": lambda each: each.alone,
            "in one trajectory": lambda each: each.one_trajectory,
            "conflicting": lambda each: None if each.aliasing is None else each.aliasing.conflicting,
            "in hiding states": lambda each: None if each.aliasing is None else each.aliasing.hiding,
            "ambiguous": lambda each: each.ambiguous,
            "split": lambda each: each.split,
        }
        for name, share in shares.items():
            values = [share(each) for each in self.found.values()]
            if any(value is not None for value in values):
                named[name] = ["-" if value is None else f"{value:.1%}" for value in values]
        widths = [max(map(len, (name, *values))) for name, values in named.items()]
        rows = [list(named), *zip(*named.values())]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def compare_states(
    definitions: Mapping[str, Any],  # name -> S states, as in group_states
    group: Sequence | Tensor | None = None,  # (S,) label of each step's task
    *,
    trajectory: Sequence | Tensor | None = None,  # (S,) label of each step's trajectory, whose rows stand in time order
    action: Sequence | Tensor | None = None,  # (S,) label of what was done in each step
    truth: Sequence | Tensor | None = None,  # (S,) label of the true state, where a simulator knows it
) -> Definitions:
    """Group the same steps by several definitions of their state, and say of each what `diagnose` counts (no maskings are tried).

        {name: diagnose(states, group, trajectory=trajectory, ..., seconds=0.0) for name, states in definitions.items()}

    A coarse state leaves few steps alone and hides much, a fine one the other way round: the table shows both sides. Conflicting: of the
    steps that share state and action with another, the share that went on to another state than the rest. Raises as `diagnose` does.
    """
    if not isinstance(definitions, Mapping) or not definitions:
        fix = 'pass {"obs": observations, "room": rooms}'
        checks.fail("compare_states", "definitions", "a dict of states by name", definitions, fix, error=TypeError)
    rest = {"trajectory": trajectory, "action": action, "truth": truth, "seconds": 0.0}
    return Definitions({name: diagnose(states, group, **rest) for name, states in definitions.items()})
