"""Why grouping is poor, in numbers and in words, and the key that would mend it."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..types import GiGPOAdvantages
from . import rows as inputs
from .aliasing import Aliasing, find_aliases
from .evidence import read_texts, sample
from .grouping import group_states
from .labels import numbered as number_labels
from .normalise import Normaliser, compose
from .propose import Proposal, propose

MOST_ALONE, MOST_IN_ONE_TRAJECTORY, MOST_AMBIGUOUS = 0.5, 0.1, 0.05  # shares of the steps from which on a warning is given
MOST_CONFLICTING = 0.01  # of the steps that can be compared
FARTHEST_MEAN = 0.1  # of the advantages' root mean square
MOST_STEP_LEVEL = 0.75  # of the mean absolute advantage of both levels together
SIZES = (("1", 1, 1), ("2 to 3", 2, 3), ("4 to 7", 4, 7), ("8 to 15", 8, 15), ("16 or more", 16, float("inf")))


@dataclass(frozen=True)
class Diagnosis:
    """What `anchor.diagnose` found; `print` it. Shares are of all valid steps."""

    steps: int
    tasks: int
    groups: int
    alone: float  # share in a group of one
    sizes: dict[str, float]  # share in groups of so many steps
    one_trajectory: float | None  # share in groups of several steps of one trajectory; None if trajectories are not known
    ambiguous: float | None  # share whose text stands for several true states of the task; None if truth is not known
    split: float | None  # share whose true state has several texts in the task
    mean_advantage: float | None  # token-weighted mean of the advantages over their root mean square
    step_level: float | None  # share of the step level in the mean absolute advantage of both levels
    proposals: tuple[Proposal, ...]  # to be applied in this order
    refused: tuple[Proposal, ...]  # tried, but not safe
    key: Normaliser | None  # the proposals as one normaliser, for group_states(..., key=...)
    warnings: tuple[str, ...]
    aliasing: Aliasing | None = None  # None if actions are not known
    tried_on: int | None = None  # different texts of a task on which maskings were tried; None: on all

    def __str__(self) -> str:
        if self.steps == 0:
            return "no valid step: there is nothing to diagnose"
        lines = [f"{self.steps} steps of {self.tasks} tasks in {self.groups} groups; {self.alone:.1%} of the steps are alone"]
        lines.append("steps by size of their group: " + ", ".join(f"{size}: {share:.1%}" for size, share in self.sizes.items()))
        if self.ambiguous is not None:
            lines.append(
                f"{self.ambiguous:.1%} of the steps have a state that stands for several true states, {self.split:.1%} a true state "
                "that shows as several states"
            )
        lines += [f"equal states and actions: {self.aliasing}"] if self.aliasing is not None else []
        lines += [f"maskings were tried on {self.tried_on} texts of whole tasks"] if self.tried_on is not None else []
        lines += [f"proposal: {proposal}" for proposal in self.proposals]
        lines += [f"key: {self.key}"] if self.key is not None else []
        lines += [f"tried: {proposal}" for proposal in self.refused[:3]]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def diagnose(
    states: Any,  # S states, as in group_states
    group: Sequence | Tensor | None = None,  # (S,) label of each step's task; None is one group
    *,
    truth: Sequence | Tensor | None = None,  # (S,) label of the true state, where a simulator knows it
    trajectory: Sequence | Tensor | None = None,  # (S,) label of each step's trajectory, whose rows stand in time order
    action: Sequence | Tensor | None = None,  # (S,) label of what was done in each step; wants trajectory
    ids: Sequence | Tensor | None = None,  # (S,) groups to judge in place of equal states: group_similar_states(...).ids
    advantages: GiGPOAdvantages | None = None,  # four of (S,)
    tokens: Tensor | None = None,  # (S,) int64, trained tokens of each step; None counts every step once
    valid: Tensor | Sequence[bool] | None = None,  # (S,) bool; rows that are not valid count nowhere
    seconds: float | None = 20.0,
) -> Diagnosis:
    """Say why few steps share an anchor state, and which part of the text to take out of the comparison.

    Groups are counted as `group_states` makes them. If the states are texts, maskings are then learnt from texts of one task that are
    nearly equal (numbers by the word before or behind them, the order of listed objects and lines, blanks) and tried one by one; `key`
    holds those that are safe to use: never one that joins states which `truth` says differ, and without truth only numbers that stand
    in most texts, run one way as time goes on, and leave steps alone or change at nearly every step. A key is a proposal: read it
    before you train with it. With many different texts maskings are learnt and tried on whole tasks that hold about 1,000 of them, and
    those proposed are then applied to all. After `seconds` (None: never) no more are tried, and a warning says so.
    `action`: counts how often the same state and the same action were followed by another state. Then the state hides something, or
    chance decides; which of the two cannot be told without `truth`. `ids` judges another grouping than that of equal states.
    Warns where most steps are alone; where one trajectory is compared with itself; where one text stands for several true states; where
    what followed differs; where the weighted mean of the advantages is over 0.1 of their root mean square; where the step level drowns
    the episode level.
    Raises ValueError for arguments of another length and TypeError for labels that are floats.
    """
    size = inputs.size(states)
    given = {"group": group, "truth": truth, "trajectory": trajectory, "action": action, "ids": ids, "tokens": tokens, "valid": valid}
    for name, value in given.items():
        if value is not None and len(value) != size:
            checks.fail("diagnose", name, f"{size} values, one for each state", f"{len(value)} values", "give every step one")
    if action is not None and trajectory is None:
        checks.fail("diagnose", "trajectory", "given with action", None, "without it nobody knows which step followed which")
    if seconds is not None:
        seconds = checks.number("diagnose", "seconds", seconds, at_least=0.0, fix="None has no limit")
    if tokens is not None and advantages is None:
        checks.fail("diagnose", "tokens", "None without advantages", tokens, "pass the result of gigpo_advantages too")
    if advantages is not None:
        _check_levels(advantages, tokens, size)
    found = group_states(states, group, valid=valid)
    equal = found.ids.tolist()
    rows = [row for row, number in enumerate(equal) if number >= 0]
    # Only valid rows are read from here on; equal[place], task[place] and so on belong to states[rows[place]].
    equal = [equal[row] for row in rows]
    judged = None if ids is None else _numbers("ids", ids, rows)
    task = [0] * len(rows) if group is None else _numbers("group", group, rows)
    own = None if trajectory is None else _numbers("trajectory", trajectory, rows)
    true = None if truth is None else _numbers("truth", truth, rows)

    ids = equal if judged is None else number_labels("diagnose", "ids", list(zip(task, judged))).tolist()
    done = None if action is None else _numbers("action", action, rows)
    counts = Counter(ids)
    size_of = [counts[number] for number in ids]
    steps = max(len(rows), 1)
    sizes = {name: sum(low <= size <= high for size in size_of) / steps for name, low, high in SIZES}
    alone = size_of.count(1) / steps
    one_trajectory = ambiguous = split = mean_advantage = step_level = None
    warnings = []
    if alone >= MOST_ALONE:
        warnings.append(f"{alone:.0%} of the steps share their state with no other, so the step level says nothing about them")
    if own is not None:
        visitors = _different(ids, own)
        one_trajectory = sum(count > 1 and visitors[number] == 1 for count, number in zip(size_of, ids)) / steps
        if one_trajectory >= MOST_IN_ONE_TRAJECTORY:
            warnings.append(
                f"{one_trajectory:.0%} of the steps are in groups of one trajectory, which is compared with itself there; "
                "gigpo_advantages(min_trajectories=2) leaves them out"
            )
    if true is not None:
        states_of, texts_of = _different(ids, true), _different(pairs := list(zip(task, true)), ids)
        ambiguous = sum(states_of[number] > 1 for number in ids) / steps
        split = sum(texts_of[pair] > 1 for pair in pairs) / steps
        if ambiguous >= MOST_AMBIGUOUS:
            worst = max(states_of, key=states_of.__getitem__)
            warnings.append(
                f"{ambiguous:.0%} of the steps have a state that stands for several true states ({_shown(states, rows[ids.index(worst)])} "
                f"for {states_of[worst]}); put more of what tells them apart into the state"
            )
    if advantages is not None:
        mean_advantage, step_level = _levels(advantages, tokens, rows)
        if abs(mean_advantage) > FARTHEST_MEAN:
            over, more = ("tokens" if tokens is not None else "steps"), ("better" if mean_advantage > 0 else "worse")
            warnings.append(
                f"the mean advantage over {over} is {mean_advantage:+.2f} of its root mean square: {more} trajectories have more {over} "
                "than the others; see the statistics option of gigpo_advantages and the aggregation of the loss"
            )
        if step_level >= MOST_STEP_LEVEL:
            warnings.append(f"the step level makes up {step_level:.0%} of the advantages, the episode level drowns; lower step_weight")
    aliasing = None
    if done is not None:
        names = equal if inputs.is_ragged(states) or isinstance(states, Tensor) else [_name(states[row]) for row in rows]
        aliasing = find_aliases(ids, task, own, done, names, rows)
        if aliasing.conflicting > MOST_CONFLICTING:
            worst = ", ".join(f"{_shown(states, one.row)} in {one.steps} steps of {one.tasks} tasks" for one in aliasing.states[:3])
            warnings.append(
                f"{aliasing.conflicting:.0%} of the steps that can be compared did the same in the same state and went on to another one "
                f"than the rest: the state hides something, or chance decides ({worst}); put more of what tells them apart into the state"
            )
        if judged is not None:
            exact = find_aliases(equal, task, own, done, equal, rows)
            if aliasing.conflicting > exact.conflicting + MOST_CONFLICTING:
                warnings.append(
                    f"the ids join {len(set(equal))} groups of equal states into {len(counts)}, and what they join goes on differently: "
                    f"{aliasing.conflicting:.0%} of the steps that can be compared, {exact.conflicting:.0%} among equal states; "
                    "group equal states, or raise the threshold (boards and grids are not to be joined by likeness)"
                )
    accepted, refused, tried_on = [], [], None
    if not inputs.is_ragged(states) and rows and seconds != 0.0 and all(isinstance(states[row], str) for row in rows):
        texts = read_texts([states[row] for row in rows], task, true, own)
        some = sample(texts)
        tried_on = None if some is texts else len(some.text)
        budget = _Budget(seconds)
        accepted, refused = propose(some, texts, budget)
        if budget.exceeded:
            warnings.append(f"no masking was tried after {seconds:g} seconds; pass seconds=None to try all")
    return Diagnosis(
        len(rows), len(set(task)), len(counts), alone, sizes, one_trajectory, ambiguous, split, mean_advantage, step_level,
        tuple(accepted), tuple(refused), compose(*(proposal.normaliser for proposal in accepted)) if accepted else None, tuple(warnings),
        aliasing, tried_on,
    )  # fmt: skip


def _numbers(name: str, labels: Any, rows: list[int]) -> list[int]:
    if isinstance(labels, Tensor):
        chosen = labels[torch.tensor(rows, dtype=torch.int64, device=labels.device)]
    else:
        chosen = [labels[row] for row in rows]
    return number_labels("diagnose", name, chosen).tolist()


def _different(keys: list, values: list) -> dict[Any, int]:
    """How many different values each key has."""
    found = defaultdict(set)
    for key, value in zip(keys, values):
        found[key].add(value)
    return {key: len(those) for key, those in found.items()}


def _check_levels(advantages: GiGPOAdvantages, tokens: Tensor | None, size: int) -> None:
    if not isinstance(advantages, GiGPOAdvantages):
        fix = "pass the result of gigpo_advantages, which holds both levels"
        checks.fail("diagnose", "advantages", "a GiGPOAdvantages", advantages, fix, error=TypeError)
    for name in ("advantages", "episode"):
        checks.tensor("diagnose", f"advantages.{name}", getattr(advantages, name), shape=(size,), fix="one value for each state")
    if tokens is not None:
        fix = "count the trained tokens of each step, for example mask.sum(1)"
        checks.tensor("diagnose", "tokens", tokens, shape=(size,), dtypes=checks.INTEGERS, fix=fix)


def _levels(advantages: GiGPOAdvantages, tokens: Tensor | None, rows: list[int]) -> tuple[float, float]:
    """The token-weighted mean of the advantages over their root mean square, and the share of the step level in both."""
    whole, episode = (part.detach().cpu().double()[rows] for part in (advantages.advantages, advantages.episode))
    weight = torch.ones(len(rows), dtype=torch.float64, device="cpu") if tokens is None else tokens.cpu().double()[rows]
    weight = weight / weight.sum().clamp(min=1.0)
    spread = (weight * whole.square()).sum().sqrt()
    by_step, by_episode = (weight * (whole - episode).abs()).sum(), (weight * episode.abs()).sum()
    both = by_step + by_episode
    return float((weight * whole).sum() / spread) if spread else 0.0, float(by_step / both) if both else 0.0


def _shown(states: Any, row: int) -> str:
    text = f"row {row}" if inputs.is_ragged(states) else repr(states[row])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(state: Any) -> Any:
    """What a state is called over all tasks: itself, where it can be a key."""
    return state if isinstance(state, (str, bytes, int)) else repr(state)


class _Budget:
    """Hands out items until the time is up, with a progress bar where it takes longer than a few seconds and tqdm is installed."""

    def __init__(self, seconds: float | None) -> None:
        self.exceeded, self._end = False, None if seconds is None else time.monotonic() + seconds

    def __call__(self, items: Iterable) -> Iterator:
        try:
            from tqdm import tqdm
        except ImportError:
            shown = items
        else:
            shown = tqdm(items, desc="diagnose", unit="masking", delay=5.0, leave=False)
        for item in shown:
            if self._end is not None and time.monotonic() > self._end:
                self.exceeded = True
                return
            yield item
