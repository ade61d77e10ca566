"""GiGPO's step level for TRL: what the turns of a rollout say beside its reward, as one advantage a token."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..advantage import TRL, GroupStatistics, gigpo_advantages, step_ids, to_tokens
from ..anchor import group_states
from ..rollouts import Recorder


@dataclasses.dataclass(frozen=True, kw_only=True)
class GiGPOCredit:
    """Adds step_weight * (return to go, compared among the turns of the same prompt that started from the same state) to TRL's advantages.

        advantages = trl_advantages[:, None] + step_weight * to_tokens(gigpo_advantages(...).step, step_ids(mask, turns=True))

    One turn is one run of trained tokens: what the model wrote between two answers of the environment. `states` and `rewards` name the
    fields in which a rollout keeps one entry a turn: keys that `rollout_func` returns beside its required ones (a list a row), or
    attributes of the environments of `environment_factory`. `key` takes out of a state what differs although the state does not.
    The episode level stays TRL's (reward_funcs, scale_rewards); the step level is divided by its standard deviation if scale_rewards is
    "group", by nothing if it is "none". `record` names a folder for records of every turn and the credit it got (docs/rollouts.md),
    every n-th generation batch of the training. Source: GiGPO (arXiv 2505.10978), equations 6 to 8.
    """

    gamma: float = 0.95
    step_weight: float = 1.0
    states: str = "anchor_states"
    rewards: str = "step_rewards"
    key: Callable[[Any], Any] | None = None
    statistics: GroupStatistics = TRL
    record: str | os.PathLike | None = None
    every: int = 1

    def __post_init__(self) -> None:
        checks.integer("GiGPOCredit", "every", self.every, at_least=1, fix="1 records every generation batch")
        if self.record is None and self.every != 1:
            checks.fail("GiGPOCredit", "every", "left out", self.every, "it is read with record=FOLDER only")

    def records(self, iteration: int) -> bool:
        """True in iterations that are recorded, on every rank, because all of them send their episode advantages."""
        return self.record is not None and iteration % self.every == 0

    def turns(self, inputs: list[dict], environments: list | None) -> list[tuple[list, list]]:
        """(states, rewards) of each row's turns."""
        found = []
        for row, example in enumerate(inputs):
            owner = environments[row] if environments else None
            pair = [self._field(name, example, owner) for name in (self.states, self.rewards)]
            if len(pair[0]) != len(pair[1]):
                got = f"{len(pair[0])} states and {len(pair[1])} rewards in row {row}"
                checks.fail(
                    "GiGPOCredit", f"{self.states} and {self.rewards}", "equally long, one entry a turn", got, "record both in each turn"
                )
            found.append((pair[0], pair[1]))
        return found

    def token_advantages(
        self,
        episode: Tensor,
        mask: Tensor,
        turns: list[tuple[list, list]],
        first_row: int,
        group_size: int,
        scale: str | None,
        *,
        iteration: int | None = None,
        episodes: list[float] | None = None,
    ):
        """((B, T) advantages of this process's rows, share of turns whose state was met more than once).

        `turns` are those of all processes, row after row; this process has B = len(mask) of them, from `first_row` on. With `iteration`,
        and the episode advantages of all rows in `episodes`, rank 0 records what was used.
        """
        lengths = [len(states) for states, _ in turns]
        row = torch.arange(len(turns), device="cpu").repeat_interleave(torch.tensor(lengths, dtype=torch.int64, device="cpu"))
        group = row // group_size
        ids = group_states([state for states, _ in turns for state in states], group, key=self.key).ids
        rewards = torch.tensor([float(reward) for _, found in turns for reward in found], dtype=torch.float32, device="cpu")
        credit = gigpo_advantages(
            rewards, row, group, ids, gamma=self.gamma, step_weight=self.step_weight, scale=scale, statistics=self.statistics
        )
        if iteration is not None and episodes is not None:
            self._save(iteration, turns, torch.tensor(episodes, dtype=torch.float32, device="cpu")[row], group, ids, credit.step, scale)
        steps = step_ids(mask, turns=True)
        self._check_turns(steps, lengths[first_row : first_row + mask.shape[0]])
        # step_ids number the turns that have tokens; rows that were cut to nothing have none, but their turns count in the statistics.
        kept = torch.tensor([bool(has) for has in mask.any(1).tolist()], dtype=torch.bool, device="cpu")
        local = row - first_row
        mine = (local >= 0) & (local < mask.shape[0])
        mine &= kept[local.clamp(0, mask.shape[0] - 1)]
        step = to_tokens(credit.step[mine].to(episode), steps)
        met = torch.bincount(ids)[ids] > 1
        return torch.where(mask, episode[:, None] + self.step_weight * step, 0), float(met.float().mean()) if len(row) else 0.0

    def _save(self, iteration: int, turns: list, episode: Tensor, group: Tensor, ids: Tensor, step: Tensor, scale: str | None) -> None:
        columns = {
            "task": group,
            "trajectory": [row for row, (states, _) in enumerate(turns) for _ in states],
            "step": [turn for states, _ in turns for turn in range(len(states))],
            "state": [state for states, _ in turns for state in states],
            "reward": [float(reward) for _, rewards in turns for reward in rewards],
            "episode_advantage": episode,
            "step_advantage": step,
            "advantage": episode + self.step_weight * step,
            "state_id": ids,
        }
        settings = {"gamma": self.gamma, "step_weight": self.step_weight, "scale": scale, "statistics": self.statistics}
        Recorder(self.record, every=self.every).save(iteration, columns, settings=settings)

    def _check_turns(self, steps: Tensor, lengths: list[int]) -> None:
        for row, (ids, turns) in enumerate(zip(steps.cpu(), lengths)):
            runs = len(ids[ids >= 0].unique())
            if runs not in (0, turns):
                checks.fail(
                    "GiGPOCredit",
                    self.states,
                    f"one entry for each of the {runs} turns in row {row} of the batch",
                    f"{turns} entries",
                    "record a state before each answer of the model, keep a token of the environment between turns, "
                    "and end a rollout before max_completion_length cuts a turn off",
                )

    def _field(self, name: str, example: dict, owner: Any) -> list:
        if name not in example and not hasattr(owner, name):
            fix = "return it from rollout_func, or keep it as an attribute of the environment, emptied by its reset()"
            checks.fail("GiGPOCredit", name, "a field of each rollout", "none of that name", fix, error=KeyError)
        return list(example[name] if name in example else getattr(owner, name))
