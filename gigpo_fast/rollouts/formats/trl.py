"""TRL's log_completions: one row a completion, as text without special tokens, and one column a reward function."""

from collections.abc import Iterator
from typing import Any

NAME = "trl"
COLUMNS = {"task": "_task", "reward": "_reward", "iteration": "step"}
_RECORD = "use GiGPOCredit(record=FOLDER) (docs/trl.md)"
MISSING = {
    "task": 'TRL writes none: with columns={"task": "prompt"} rows of equal prompts are one task',
    "state": f"the state is the first prompt, the only one that can be told apart: {_RECORD}",
    "action": f"actions stand inside the whole text of a row, in `response`: {_RECORD}",
    "reward": 'rewards are of whole rows and unweighted; of several columns name one: columns={"reward": "KEY"}',
    "step": f"each trajectory is one row, so turns inside `completion` are lost (no special tokens) and there is no step level: {_RECORD}",
}
CONVERSATION = True  # an answer is the text of a whole trajectory, which has no single action
_OWN = ("step", "prompt", "completion", "advantage")


def knows(record: dict[str, Any]) -> bool:
    """What its table always has."""
    return set(_OWN) <= record.keys()


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row; its only other column of numbers is the reward."""
    rewards = [value for name, value in record.items() if name not in _OWN and type(value) in (int, float)]
    yield record | {"_reward": rewards[0] if len(rewards) == 1 else None}


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The whole completion, with the advantage that TRL used: it is of the episode level."""
    yield {"state": record["prompt"], "response": record["completion"], "episode_advantage": record["advantage"]}
