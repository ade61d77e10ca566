"""From what an agent loop of verl says about its turns to GiGPO's advantage at every token: settings, and a function that needs no verl."""

import collections
import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..advantage import CORRECTED, ROLL, VERL_AGENT, gigpo_advantages, step_ids, to_tokens
from ..advantage.arguments import discount
from ..anchor import group_ids, group_similar_states, group_states
from ..rollouts import Recorder
from ..types import GiGPOAdvantages

STATES, REWARDS = "anchor_states", "step_rewards"
_WHERE = "GiGPO in verl"
_SCALES = {"mean_norm": None, "mean_std_norm": "std"}
_STATISTICS = {"corrected": CORRECTED, "verl_agent": VERL_AGENT, "roll": ROLL}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GiGPOConfig:
    """algorithm.gigpo of a verl config, under verl-agent's names and with its defaults, and algorithm.gamma.

    gamma: discount of step rewards. step_advantage_w: weight of the step level.
    mode: "mean_norm" centres both levels, "mean_std_norm" also divides by the standard deviation.
    enable_similarity, similarity_thresh: states are texts and one if so alike, by difflib's ratio, in the order of uid, session and time.
    statistics: "corrected", "verl_agent" or "roll", the constants of gigpo_fast.advantage; "verl_agent" gives that project's numbers.
    state_key: "module:function", what to compare in a state's place (anchor.group_states' key).
    record: a folder for records of every step and the credit it got (docs/rollouts.md), every record_every-th training step.
    """

    gamma: float = 1.0
    step_advantage_w: float = 1.0
    mode: str = "mean_norm"
    enable_similarity: bool = False
    similarity_thresh: float = 0.95
    statistics: str = "corrected"
    state_key: str | None = None
    record: str | None = None
    record_every: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("mode", _SCALES), ("statistics", _STATISTICS), ("enable_similarity", (False, True))):
            if getattr(self, name) not in allowed:
                fail(f"algorithm.gigpo.{name}", " or ".join(map(repr, allowed)), getattr(self, name), "see docs/verl.md")
        discount(_WHERE, self.gamma)
        checks.number(_WHERE, "algorithm.gigpo.step_advantage_w", self.step_advantage_w, at_least=0.0, fix="1.0 is usual")
        checks.number(_WHERE, "algorithm.gigpo.similarity_thresh", self.similarity_thresh, above=0.0, fix="0.95 is usual")
        if self.similarity_thresh >= 1.0 and self.enable_similarity:
            fail("algorithm.gigpo.similarity_thresh", "below 1", self.similarity_thresh, "for equal texts set enable_similarity=False")
        if self.enable_similarity and self.state_key is not None:
            fail("algorithm.gigpo.state_key", "null with enable_similarity", self.state_key, "a key makes grouping exact: use one of both")
        if not self.enable_similarity and self.similarity_thresh != 0.95:
            fail("algorithm.gigpo.similarity_thresh", "left out", self.similarity_thresh, "it is read with enable_similarity=True only")
        checks.integer(_WHERE, "algorithm.gigpo.record_every", self.record_every, at_least=1, fix="1 records every training step")
        if self.record is None and self.record_every != 1:
            fail("algorithm.gigpo.record_every", "left out", self.record_every, "it is read with record=FOLDER only")
        self.key()

    @classmethod
    def of(cls, algorithm: Any) -> "GiGPOConfig":
        """Read config.algorithm; unknown names and settings that clash raise."""
        given = dict(algorithm.get("gigpo") or {})
        known = [field.name for field in dataclasses.fields(cls) if field.name != "gamma"]
        unknown = sorted(set(given) - set(known))
        if unknown:
            fix = "the discount is algorithm.gamma" if "gamma" in unknown else "correct the name"
            fail("algorithm.gigpo", f"made of {', '.join(known)}", f"also {', '.join(unknown)}", fix)
        config = cls(gamma=algorithm.gamma, **given)
        if config.mode == "mean_std_norm" and not algorithm.get("norm_adv_by_std_in_grpo", True):
            got = "norm_adv_by_std_in_grpo=False and gigpo.mode='mean_std_norm'"
            fail("algorithm", "of one mind about the deviation", got, "mode decides: use mean_norm, or leave the other at True")
        return config

    def key(self) -> Callable[[Any], Any] | None:
        """The function that state_key names."""
        if self.state_key is None:
            return None
        module, _, name = self.state_key.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            fix = f"{type(error).__name__}: {error}"
            return fail("algorithm.gigpo.state_key", "'module:function', importable where the trainer runs", self.state_key, fix)


def gigpo_token_advantages(
    token_rewards: Tensor,  # (B, T) float; a row's sum is its trajectory's score
    mask: Tensor,  # (B, T) bool, as the agent loop wrote it; each run of True is a turn
    keys: Sequence[str],  # B of "uid_session_index": the task, the trajectory, and which of its outputs, from 0 in time order
    extra_fields: Sequence[Mapping[str, Any]],  # B; anchor_states and step_rewards: two lists with one entry a turn
    *,
    config: GiGPOConfig,
    padding: Sequence[bool] | None = None,  # B, rows that verl added to fill up a batch
    iteration: int | None = None,  # of the training; with config.record it names the file
) -> tuple[Tensor, dict[str, float]]:  # (B, T) float32, 0 where not trained; metrics
    """GiGPO's advantage at every token of a batch of agent loop outputs, whether an output holds one turn or a conversation.

        steps = [(uid, session, state, reward, row_score) for output in time order for its turns]
        a = gigpo_advantages(reward, (uid, session), uid, group_states(state, uid).ids, gamma=gamma, episode_scores=row_score)
        return to_tokens(a.advantages, step_ids(mask, turns=True))

    The order of the rows changes nothing. A row without a trained token gets nothing, but its steps count; padding does not. Statistics
    in float64. Metric gigpo/shared_states: the share of steps whose state was met more than once.
    Raises for outputs that do not say one state and one reward for each turn, and for a trajectory that lacks an output.
    Source: GiGPO (arXiv 2505.10978), equations 3 and 5 to 8.
    """
    names = [_names(key) for key in keys]
    real = [row for row in range(len(names)) if padding is None or not padding[row]]
    rows = sorted(real, key=lambda row: names[row])
    _check_outputs([names[row] for row in rows])
    place = torch.tensor(rows, dtype=torch.int64, device="cpu")
    ordered = mask.cpu()[place]
    runs = (ordered & ~torch.nn.functional.pad(ordered, (1, 0))[:, :-1]).sum(1).tolist()
    turns = [_turns(keys[row], extra_fields[row], count) for row, count in zip(rows, runs)]
    lengths = torch.tensor([len(states) for states, _ in turns], dtype=torch.int64, device="cpu")

    output = torch.arange(len(rows), device="cpu").repeat_interleave(lengths)
    task = group_ids([names[row][0] for row in rows])[output]
    trajectory = group_ids([keys[row].rpartition("_")[0] for row in rows])[output]
    states = [state for states, _ in turns for state in states]
    if config.enable_similarity:
        ids = group_similar_states(states, task, threshold=config.similarity_thresh).ids
    else:
        ids = group_states(states, task, key=config.key()).ids.cpu()
    found = gigpo_advantages(
        torch.tensor([reward for _, rewards in turns for reward in rewards], dtype=torch.float32, device="cpu"),
        trajectory,
        task,
        ids,
        gamma=config.gamma,
        episode_scores=token_rewards.detach().sum(-1).float().cpu()[place][output],
        step_weight=config.step_advantage_w,
        scale=_SCALES[config.mode],
        statistics=_STATISTICS[config.statistics],
    )
    if config.record is not None:
        labels = [(names[row][0], keys[row].rpartition("_")[0]) for row, turn in zip(rows, turns) for _ in turn[0]]
        _record(config, iteration, labels, states, [reward for _, rewards in turns for reward in rewards], ids, found)
    written = ordered.any(1)[output]  # step_ids number the turns that have tokens
    advantages = torch.zeros(mask.shape, dtype=torch.float32, device="cpu")
    advantages[place] = to_tokens(found.advantages[written], step_ids(ordered, turns=True))
    shared = float((torch.bincount(ids)[ids] > 1).float().mean()) if len(states) else 0.0
    return advantages.to(token_rewards.device), {"gigpo/shared_states": shared}


def _record(
    config: GiGPOConfig, iteration: int | None, labels: list, states: list, rewards: list[float], ids: Tensor, found: GiGPOAdvantages
) -> None:
    """Write what was used, one record a step; the trainer runs in one process, so it has all of them."""
    if iteration is None:
        fail("iteration", "the training step, with algorithm.gigpo.record", None, "pass it, or leave record out")
    recorder = Recorder(config.record, every=config.record_every)
    if not recorder.wanted(iteration):
        return
    number: collections.Counter = collections.Counter()
    columns = {
        "task": [task for task, _ in labels],
        "trajectory": [name for _, name in labels],
        "step": [number.update([name]) or number[name] - 1 for _, name in labels],
        "state": states,
        "reward": rewards,
        "episode_advantage": found.episode,
        "step_advantage": found.step,
        "advantage": found.advantages,
        "state_id": ids,
    }
    settings = dataclasses.asdict(config) | {"step_weight": config.step_advantage_w, "scale": _SCALES[config.mode]}
    recorder.save(iteration, columns, settings=settings)


def _names(key: str) -> tuple[str, str, int]:
    """Task, session and output of a key of verl's transfer queue."""
    uid, session, index = (key.rsplit("_", 2) + ["", ""])[:3]
    if not uid or not session or not index.isdigit():
        fail(
            "keys",
            "'uid_session_index', as verl's agent loop workers write them",
            key,
            "use AgentLoopManagerTQ, or name outputs as it does",
        )
    return uid, session, int(index)


def _check_outputs(names: list[tuple[str, str, int]]) -> None:
    """Every trajectory has outputs 0, 1, 2, ...: with one missing, returns would skip its rewards."""
    expected: dict[tuple[str, str], int] = {}
    for uid, session, index in names:
        wanted = expected.get((uid, session), 0)
        if index != wanted:
            got = f"output {index} of {uid}_{session} where {wanted} belongs"
            fail("keys", "those of whole trajectories, each output once", got, "sample whole groups from the replay buffer")
        expected[uid, session] = wanted + 1


def _turns(key: str, fields: Mapping[str, Any], runs: int) -> tuple[list, list[float]]:
    """The states and rewards of one output's turns."""
    found = []
    for name in (STATES, REWARDS):
        example = f"return AgentLoopOutput(..., extra_fields={{{STATES!r}: [state], {REWARDS!r}: [reward]}}) from the agent loop"
        if name not in fields:
            fail(f"extra_fields[{name!r}]", "in every output", f"none of that name in {key}", example, error=KeyError)
        entries = fields[name].tolist() if name == REWARDS and hasattr(fields[name], "tolist") else fields[name]
        if not isinstance(entries, (list, tuple)):
            fail(
                f"extra_fields[{name!r}]", "a list with one entry a turn", f"a {type(entries).__name__} in {key}", example, error=TypeError
            )
        turns = runs or len(found[0] if found else entries)  # a row without a trained token says itself how many it had
        if len(entries) != turns:
            wanted = f"one entry for each of the {turns} turns of {key}"
            fix = "a turn is a run of 1 in response_mask: record state and reward of each, put a 0 between turns, leave out turns cut off"
            fail(f"extra_fields[{name!r}]", wanted, f"{len(entries)} entries", fix)
        found.append(list(entries))
    try:
        return found[0], [float(reward) for reward in found[1]]
    except (TypeError, ValueError):
        return fail(f"extra_fields[{REWARDS!r}]", "numbers", f"{found[1]} in {key}", "0.0 where a turn earned nothing", error=TypeError)


def fail(argument: str, expected: str, got: Any, fix: str, *, error: type[Exception] = ValueError) -> Any:
    """The one message form, for settings and for what the agent loop returned."""
    checks.fail(_WHERE, argument, expected, got, fix, error=error)
