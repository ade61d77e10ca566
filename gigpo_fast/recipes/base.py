"""What a recipe is, and how it is found by name."""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, overload

import torch

from ..objective import PolicyObjective
from ..pairwise import PairwiseObjective
from ..settings import Kind, kinds_of_parameters, read
from .known import PairwiseName, PolicyName

P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class Use:
    """A function of the package with some of its keywords set; whatever is given at the call replaces them.

    Use("advantage", "group_advantages", {"scale": "std"})(scores, group) is advantage.group_advantages(scores, group, scale="std").
    """

    module: str
    function: str
    settings: Mapping[str, Any]

    def __hash__(self) -> int:  # a mapping has none
        return hash((self.module, self.function, tuple(sorted(self.settings))))

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

    def __hash__(self) -> int:  # schedules are a mapping, which has none
        return hash((self.name, self.objective, self.advantages, self.rewards, self.second))


class PolicyRecipe(Recipe):
    """A recipe for loss.policy_loss and loss.linear_policy_loss."""

    __slots__ = ()
    objective: PolicyObjective


class PairwiseRecipe(Recipe):
    """A recipe for pairwise.pairwise_loss and its kin."""

    __slots__ = ()
    objective: PairwiseObjective


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
    settings: dict[str, Kind]
    defaults: dict[str, Any]


KEPT = 1024  # recipes; a coefficient that changes at every step must not fill the memory
_entries: dict[str, _Entry] = {}
_made: OrderedDict[tuple, Recipe] = OrderedDict()  # one object for one choice of settings, so that what was compiled for it stays valid


def register(paper: str) -> Callable[[Callable[P, Parts]], Callable[P, PolicyRecipe]]:
    """Make a recipe of a function with keyword-only settings: @register("Title (arXiv ...)") above def name(*, option=1.0) -> Parts."""

    def add(make: Callable[P, Parts]) -> Callable[P, PolicyRecipe]:
        name, signature = make.__name__, inspect.signature(make)
        if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in signature.parameters.values()):
            raise TypeError(f"register: settings of {name!r} must be keyword-only, got {signature}; put * before them")
        if name in _entries:
            raise ValueError(f"register: name must be new, got {name!r}, which is {_entries[name].paper}; choose another")

        @functools.wraps(make)
        def made(*_: P.args, **settings: P.kwargs) -> Any:
            return recipe(name, **settings)

        defaults = {parameter.name: parameter.default for parameter in signature.parameters.values()}
        _entries[name] = _Entry(make, made, paper, kinds_of_parameters(make), defaults)
        return made

    return add


def register_preference(paper: str) -> Callable[[Callable[P, Parts]], Callable[P, PairwiseRecipe]]:
    """`register` for losses of pairs, to a type checker alone another function."""
    return register(paper)  # type: ignore[return-value]


def names() -> list[str]:
    """The recipes there are."""
    return sorted(_entries)


@overload
def recipe(name: PolicyName, **overrides: Any) -> PolicyRecipe: ...
@overload
def recipe(name: PairwiseName, **overrides: Any) -> PairwiseRecipe: ...
@overload
def recipe(name: str, **overrides: Any) -> Recipe: ...
def recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe called `name`, with its paper's defaults unless overridden: recipe("gigpo", kl_coefficient=0.01).

    The same name and settings give the same object, of the 1,024 used last. What a recipe is, and where its defaults come from, is in the
    docstring of the function of that name in gigpo_fast.recipes. Numbers may be Python's or NumPy's; a text, a boolean, NaN and an unknown
    name or setting raise with the setting and the value.
    """
    entry = entry_of(name)
    unknown = sorted(set(overrides) - set(entry.settings))
    if unknown:
        raise TypeError(
            f"recipe: {name!r} takes the settings {sorted(entry.settings)}, got {unknown}; compose a PolicyObjective for anything else"
        )
    settings = {key: read(f"recipe {name!r}", key, value, entry.settings[key]) for key, value in overrides.items()}
    # True and 1 are equal, so a value's type belongs to the key
    key = (name, *((type(value).__name__, value) for value in {**entry.defaults, **settings}.values()))
    try:
        found = _made.get(key)
    except TypeError as error:
        raise TypeError(f"recipe {name!r}: settings must be hashable, got {settings!r}; pass tuples for lists") from error
    if found is None:
        found = _make(name, entry, settings, key)
    elif len(_made) >= KEPT and not torch.compiler.is_compiling():
        with contextlib.suppress(KeyError):  # another thread may just have dropped it
            _made.move_to_end(key)
    return found


def _make(name: str, entry: _Entry, settings: dict[str, Any], key: tuple) -> Recipe:
    try:
        parts = entry.make(**settings)
    except ZeroDivisionError as error:
        raise ValueError(f"recipe {name!r}: a setting that divides must not be 0, got {settings!r}; see the docstring") from error
    kind = PairwiseRecipe if isinstance(parts.objective, PairwiseObjective) else PolicyRecipe
    found = _made.setdefault(key, kind(name, entry.paper, *parts))  # of two threads the first
    while len(_made) > KEPT:
        _made.popitem(last=False)
    return found


def entry_of(name: str) -> _Entry:
    """What is registered under a name."""
    if not isinstance(name, str) or name not in _entries:
        near = difflib.get_close_matches(str(name), _entries, n=3, cutoff=0.0)
        raise ValueError(
            f"recipe: name must be that of a recipe, got {name!r}; the nearest are {', '.join(map(repr, near))}, recipes.names() lists all "
            "and PolicyObjective composes anything else"
        )
    return _entries[name]
