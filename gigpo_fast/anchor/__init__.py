"""Anchor states: which steps of a group were taken in the same state.

Grouping is exact by default (bytes decide), by similarity on request, and gives the same ids on every path and device. Where text
differs although the state does not, `normalise` takes the difference out, and `diagnose` finds it.
"""

from . import normalise
from .diagnosis import Diagnosis, diagnose
from .grouping import group_states
from .labels import group_ids
from .similar import group_similar_states

__all__ = ["Diagnosis", "diagnose", "group_ids", "group_similar_states", "group_states", "normalise"]
