"""What a recipe is, and how it is found by name."""

from collections.abc import Callable
from typing import NamedTuple

from ..objective import PolicyObjective


class Recipe(NamedTuple):
    """A paper's method as the engine's blocks."""

    name: str
    paper: str  # authors' title and arXiv id
    objective: PolicyObjective  # for loss.policy_loss and loss.linear_policy_loss
    advantages: Callable  # the estimator of gigpo_fast.advantage with the recipe's settings


def names() -> list[str]:
    """The recipes there are."""
    from .group_relative import RECIPES

    return sorted(RECIPES)


def recipe(name: str, **overrides: float | None) -> Recipe:
    """The recipe called `name`, with its paper's defaults unless overridden: recipe("gigpo", kl_coefficient=0.01).

    An unknown name or setting raises with the valid ones.
    """
    from .group_relative import RECIPES

    if name not in RECIPES:
        raise ValueError(f"recipe: name must be one of {sorted(RECIPES)}, got {name!r}; or compose a PolicyObjective")
    return RECIPES[name](overrides)
