"""The different texts of every task, and what a normaliser would make of them: how many steps would be alone, which states would merge."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from .normalise import Normaliser, unless


class Texts(NamedTuple):
    """The C different pairs (task, text) of S steps."""

    task: list[int]  # C
    text: list[str]  # C
    steps: list[int]  # C, how many steps have it
    truths: list[frozenset[int]] | None  # C, the true states that it was seen in; None if nobody knows
    sequences: list[list[int]]  # for each trajectory (or task) the pairs of its steps, in row order

    @property
    def total(self) -> int:
        """S, the number of steps."""
        return sum(self.steps)


SAMPLE = 1000  # texts on which maskings are tried


class Outcome(NamedTuple):
    """What a normaliser leaves."""

    alone: int  # steps that share their text with no other step of their task
    groups: int


class Tried(NamedTuple):
    """A normaliser that never merges what truth says differs, and the texts it makes."""

    normaliser: Normaliser
    text: list[str]  # C
    seen: list[str]  # C, what groups are judged by: the text, or what is left of it if other nuisances are taken out too
    everywhere: list[str]  # C, the text without regard to truth
    kept_apart: int  # results that it avoids, because truth says that the states they would join differ


def read_texts(states: list[str], task: list[int], truth: list[int] | None, trajectory: list[int] | None) -> Texts:
    """Collect S steps; truth and trajectory may be unknown."""
    number: dict[tuple[int, str], int] = {}
    pairs = [number.setdefault(pair, len(number)) for pair in zip(task, states)]
    steps = [0] * len(number)
    truths: list[set[int]] = [set() for _ in number]
    sequences: dict[int, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        steps[pair] += 1
        sequences[(task if trajectory is None else trajectory)[row]].append(pair)
        if truth is not None:
            truths[pair].add(truth[row])
    known = None if truth is None else [frozenset(states) for states in truths]
    return Texts([task for task, _ in number], [text for _, text in number], steps, known, list(sequences.values()))


def sample(texts: Texts) -> Texts:
    """Whole tasks that hold about SAMPLE texts together, drawn the same way each time; all of them if there are not more."""
    if len(texts.text) <= SAMPLE:
        return texts
    of_task: dict[int, list[int]] = defaultdict(list)
    for pair, task in enumerate(texts.task):
        of_task[task].append(pair)
    order, chosen = list(of_task), []
    random.Random(0).shuffle(order)
    for task in order:
        if chosen and len(chosen) + len(of_task[task]) > SAMPLE:
            continue
        chosen += of_task[task][: SAMPLE - len(chosen)]
    place = {pair: number for number, pair in enumerate(sorted(chosen))}
    pick = lambda values: None if values is None else [values[pair] for pair in place]  # noqa: E731
    sequences = [[place[pair] for pair in pairs if pair in place] for pairs in texts.sequences]
    return Texts(pick(texts.task), pick(texts.text), pick(texts.steps), pick(texts.truths), [pairs for pairs in sequences if pairs])


def outcome(texts: Texts, text: list[str], among: list[int] | None = None) -> Outcome:
    """The groups of all steps if each pair had the text `text`; `among`: count the steps of these pairs only, in the same groups."""
    size: Counter = Counter()
    keys = list(zip(texts.task, text))
    for key, steps in zip(keys, texts.steps):
        size[key] += steps
    counted = range(len(keys)) if among is None else among
    return Outcome(sum(size[keys[pair]] == 1 for pair in counted), len({keys[pair] for pair in counted}))


def changed_by(normaliser: Callable[[str], str] | None, texts: list[str]) -> list[str]:
    """A function of every text, called once for each different one."""
    if normaliser is None:
        return texts
    memo = {text: normaliser(text) for text in dict.fromkeys(texts)}
    return [memo[text] for text in texts]


def attempt(texts: Texts, current: list[str], normaliser: Normaliser, view: Callable[[str], str] | None = None) -> Tried:
    """Apply a normaliser to the current texts; where truth is known, except where that would join different states.

    `view` takes other nuisances out of the texts before groups are judged, which are still in them and would hide what is joined.
    """
    everywhere, before = changed_by(normaliser, current), changed_by(view, current)
    kept: set[str] = set()
    while True:
        result = [text if after in kept else after for text, after in zip(current, everywhere)]
        seen = changed_by(view, result)
        wrong = {everywhere[pair] for pair in joined_wrongly(texts, before, seen)} - kept
        if not wrong:
            return Tried(unless(normaliser, kept) if kept else normaliser, result, seen, everywhere, len(kept))
        kept |= wrong


def joined_wrongly(texts: Texts, before: list[str], after: list[str]) -> list[int]:
    """The pairs of groups that hold several texts and several true states."""
    if texts.truths is None:
        return []
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for pair, key in enumerate(zip(texts.task, after)):
        groups[key].append(pair)
    wrong = []
    for pairs in groups.values():
        if len({before[pair] for pair in pairs}) > 1 and len(frozenset().union(*(texts.truths[pair] for pair in pairs))) > 1:
            wrong += pairs
    return wrong
