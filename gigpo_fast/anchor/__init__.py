"""Anchor states: which steps of a group were taken in the same state.

Grouping is exact by default (bytes decide), by similarity on request, and gives the same ids on every path and device. Where text
differs although the state does not, `normalise` takes the difference out, and `diagnose` finds it; `compare_states` sets definitions of
the state side by side.
"""

from . import normalise
from .definitions import Definitions, compare_states
from .diagnosis import Diagnosis, diagnose
from .grouping import group_states
from .labels import group_ids
from .similar import group_similar_states

__all__ = ["Definitions", "Diagnosis", "compare_states", "diagnose", "group_ids", "group_similar_states", "group_states", "normalise"]
