"""The files of recorded preference losses, and who answers them."""

from . import preference_papers, trl_preference

ADAPTERS = {**preference_papers.ADAPTERS, **trl_preference.ADAPTERS}
