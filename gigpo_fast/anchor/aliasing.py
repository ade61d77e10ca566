"""One state that hides several, seen without knowing the true ones: the same state, the same action, another next state."""

from collections import Counter, defaultdict
from typing import NamedTuple

MOST_NAMED = 5  # states that are listed


class HidingState(NamedTuple):
    """A state from which the same action led to different states."""

    row: int  # the first row in that state, in the numbering of the caller
    steps: int  # over all tasks in which its text occurs
    tasks: int


class Aliasing(NamedTuple):
    """How often equal states with equal actions were followed by different states. Shares are of steps."""

    comparable: float  # of all steps: those whose state and action another step shares, with the next state of both known
    conflicting: float  # of the comparable steps: those whose next state is not that of all the others
    hiding: float  # of all steps: those in a state where that happened
    states: tuple[HidingState, ...]  # the most visited of them first

    def __str__(self) -> str:
        return (
            f"{self.comparable:.1%} of the steps share state and action with another; {self.conflicting:.1%} of these went on to another "
            f"state; {self.hiding:.1%} of the steps are in states where that happened"
        )


def find_aliases(ids: list[int], task: list[int], trajectory: list[int], action: list, name: list, rows: list[int]) -> Aliasing:
    """Look at S steps in row order; `name` is what a state is called over all tasks (its text, say), `rows` the caller's numbers."""
    following: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, own in enumerate(trajectory):
        if own in last:
            following[last[own]] = ids[place]
        last[own] = place
    seen: dict[tuple, Counter] = defaultdict(Counter)
    for place, after in following.items():
        seen[ids[place], action[place]][after] += 1
    comparable = conflicting = 0
    flagged: set[int] = set()
    for (state, _), after in seen.items():
        steps = after.total()
        comparable += steps if steps > 1 else 0
        if len(after) > 1:
            conflicting += steps
            flagged.add(state)
    first: dict = {}
    steps_of, tasks_of = Counter(), defaultdict(set)
    hiding, named = 0, {name[place] for place, state in enumerate(ids) if state in flagged}
    for place, state in enumerate(ids):
        hiding += state in flagged
        if name[place] in named:
            first.setdefault(name[place], rows[place])
            steps_of[name[place]] += 1
            tasks_of[name[place]].add(task[place])
    worst = tuple(HidingState(first[text], steps, len(tasks_of[text])) for text, steps in steps_of.most_common(MOST_NAMED))
    total = max(len(ids), 1)
    return Aliasing(comparable / total, conflicting / max(comparable, 1), hiding / total, worst)
