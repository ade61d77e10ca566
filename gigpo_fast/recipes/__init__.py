"""Named compositions: a paper's loss and advantages by name, with its defaults.

    found = recipes.recipe("gspo", clip_high=5e-4)           # or recipes.gspo(clip_high=5e-4)
    A = found.advantages(scores, group)                      # one a row: advantage.to_tokens brings them to the tokens
    loss.linear_policy_loss(hidden, head, token_ids, A_tokens, mask, objective=found.objective, ...)

Where a paper and its authors' code differ, both have a name, and the docstring says which is the default and why.
"""
# ruff: noqa: F401 - importing a file registers its recipes

from . import (
    actor_critic,
    contrast,
    diffusion,
    distillation,
    entropy,
    group_relative,
    off_policy,
    pairwise,
    policy_gradient,
    segments,
    sequence,
    shaped,
    soft_bounds,
    step_credit,
    supervised,
)
from .base import Parts, Recipe, Use, entry_of, names, recipe, register

__all__ = ["Parts", "Recipe", "Use", "names", "recipe", "register"]


def __getattr__(name: str):
    if name not in names():
        raise AttributeError(f"module 'gigpo_fast.recipes' has no attribute {name!r}; recipes.names() lists the recipes")
    return entry_of(name).made  # recipes.grpo(...) is recipe("grpo", ...)
