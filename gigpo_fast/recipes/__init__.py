"""Named compositions: a paper's loss and advantages by name, with its defaults."""

from .base import Recipe, names, recipe

__all__ = ["Recipe", "names", "recipe"]
