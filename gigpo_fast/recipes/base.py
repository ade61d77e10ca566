"""What a recipe is, and how it is found by name."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..objective import PolicyObjective
from ..pairwise import PairwiseObjective


@dataclasses.dataclass(frozen=True)
class Use:
    """A function of the package with some of its keywords set; whatever is given at the call replaces them.

    Use("advantage", "group_advantages", {"scale": "std"})(scores, group) is advantage.group_advantages(scores, group, scale="std").
    """

    module: str
    function: str
    settings: Mapping[str, Any]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        module = importlib.import_module(f"..{self.module}", __package__)
        return getattr(module, self.function)(*arguments, **{**self.settings, **keywords})


class Recipe(NamedTuple):
    """A paper's method as the engine's blocks."""

    name: str
    paper: str  # authors' title and arXiv id
    objective: PolicyObjective | PairwiseObjective  # for loss.policy_loss, or for pairwise.pairwise_loss
    advantages: Callable | None = None  # the estimator of gigpo_fast.advantage with the recipe's settings; None: it is the caller's
    rewards: Callable | None = None  # the shaping of gigpo_fast.reward that comes before, with the recipe's settings
    schedules: Mapping[str, Callable[[int], float]] = {}
    second: PolicyObjective | None = None  # of a second batch, whose loss is added (pretraining text, samples without labels)


class Parts(NamedTuple):
    """What a recipe's function returns; the registry adds name and paper."""

    objective: PolicyObjective | PairwiseObjective
    advantages: Callable | None = None
    rewards: Callable | None = None
    schedules: Mapping[str, Callable[[int], float]] = {}
    second: PolicyObjective | None = None


class _Entry(NamedTuple):
    make: Callable[..., Parts]
    made: Callable[..., Recipe]
    paper: str
    settings: tuple[str, ...]


_entries: dict[str, _Entry] = {}
_made: dict[tuple, Recipe] = {}  # one object for one choice of settings, so that what was compiled for it stays valid


def register(paper: str) -> Callable[[Callable[..., Parts]], Callable[..., Recipe]]:
    """Make a recipe of a function with keyword-only settings: @register("Title (arXiv ...)") above def name(*, option=1.0) -> Parts."""

    def add(make: Callable[..., Parts]) -> Callable[..., Recipe]:
        name, signature = make.__name__, inspect.signature(make)
        if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in signature.parameters.values()):
            raise TypeError(f"register: settings of {name!r} must be keyword-only, got {signature}; put * before them")
        if name in _entries:
            raise ValueError(f"register: name must be new, got {name!r}, which is {_entries[name].paper}; choose another")

        @functools.wraps(make)
        def made(**settings: Any) -> Recipe:
            return recipe(name, **settings)

        _entries[name] = _Entry(make, made, paper, tuple(signature.parameters))
        return made

    return add


def names() -> list[str]:
    """The recipes there are."""
    return sorted(_entries)


def recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe called `name`, with its paper's defaults unless overridden: recipe("gigpo", kl_coefficient=0.01).

    The same name and settings always give the same object. What a recipe is, and where its defaults come from, is in the docstring of
    the function of that name in gigpo_fast.recipes. An unknown name or setting raises with the valid ones.
    """
    key = (name, *((setting, type(value).__name__, value) for setting, value in sorted(overrides.items())))
    found = _made.get(key)
    if found is None:
        entry = entry_of(name)
        unknown = sorted(set(overrides) - set(entry.settings))
        if unknown:
            raise TypeError(
                f"recipe: {name!r} takes the settings {sorted(entry.settings)}, got {unknown}; compose a PolicyObjective for anything else"
            )
        found = _made[key] = Recipe(name, entry.paper, *entry.make(**overrides))
    return found


def entry_of(name: str) -> _Entry:
    """What is registered under a name."""
    if name not in _entries:
        raise ValueError(f"recipe: name must be one of {names()}, got {name!r}; or compose a PolicyObjective")
    return _entries[name]
