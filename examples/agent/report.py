"""What anchor grouping found in recorded rollouts, and what GiGPO makes of it."""

from dataclasses import dataclass

import torch

from gigpo_fast.advantage import gigpo_advantages
from gigpo_fast.anchor import group_states
from gigpo_fast.loss import rows_that_matter
from gigpo_fast.recipes import recipe
from gigpo_fast.types import GiGPOAdvantages, StateGroups

from .rollouts import Rollouts

GAMMA = 0.95


@dataclass(frozen=True)
class Findings:
    """One environment's figures. Shares are of all steps."""

    environment: str
    tasks: int
    trajectories: int
    steps: int
    states: int  # distinct (task, observation) pairs, that is, anchor groups
    mean_group_size: float
    largest_group: int
    singletons: int  # steps alone in their group: nothing to compare with, so GRPO's advantage stays
    one_trajectory_groups: int  # groups of two or more steps, all from one trajectory: a loop, or an action without effect
    one_trajectory_steps: int  # steps in those groups
    opposite_sign: float  # GRPO rewards the step and GiGPO punishes it, or the other way round
    new_signal: float  # GRPO says nothing (advantage 0), GiGPO does
    lost_signal: float  # the two levels cancel out
    levels_disagree: float  # the step level pulls against the episode level, whichever is the stronger
    no_forward_grpo: float  # rows that neither the loss nor its gradient can see
    no_forward_gigpo: float

    @property
    def sign_differs(self) -> float:
        return self.opposite_sign + self.new_signal + self.lost_signal


def analyse(rollouts: Rollouts) -> tuple[Findings, StateGroups, GiGPOAdvantages]:
    """Group the steps by state, compute both levels of advantages, and count."""
    groups = group_states(rollouts.observations, rollouts.group)
    levels = gigpo_advantages(rollouts.rewards, rollouts.trajectory, rollouts.group, groups.ids, gamma=GAMMA)
    steps = len(rollouts.observations)
    alone = (groups.counts > 1) & (_trajectories_of(groups, rollouts) == 1)
    grpo, gigpo = levels.episode.sign(), levels.advantages.sign()

    findings = Findings(
        environment=rollouts.environment,
        tasks=len(rollouts.tasks),
        trajectories=len(rollouts.names),
        steps=steps,
        states=len(groups.counts),
        mean_group_size=steps / len(groups.counts),
        largest_group=int(groups.counts.max()),
        singletons=int((groups.counts == 1).sum()),
        one_trajectory_groups=int(alone.sum()),
        one_trajectory_steps=int(groups.counts[alone].sum()),
        opposite_sign=_share(grpo * gigpo < 0),
        new_signal=_share((grpo == 0) & (gigpo != 0)),
        lost_signal=_share((grpo != 0) & (gigpo == 0)),
        levels_disagree=_share(levels.episode * levels.step < 0),
        no_forward_grpo=_rows_without_forward(levels.episode, "grpo"),
        no_forward_gigpo=_rows_without_forward(levels.advantages, "gigpo"),
    )
    return findings, groups, levels


def table(found: list[Findings]) -> str:
    """The findings as text, one column an environment."""
    lines = [
        ("tasks / trajectories / steps", lambda f: f"{f.tasks} / {f.trajectories} / {f.steps}"),
        ("anchor groups (distinct states)", lambda f: f"{f.states}"),
        ("group size: mean / largest", lambda f: f"{f.mean_group_size:.3f} / {f.largest_group}"),
        ("singletons (steps alone in their group)", lambda f: f"{f.singletons} ({f.singletons / f.steps:.1%} of steps)"),
        ("groups of one trajectory (size >= 2)", lambda f: f"{f.one_trajectory_groups} ({f.one_trajectory_steps / f.steps:.1%} of steps)"),
        ("GiGPO's sign differs from GRPO's", lambda f: f"{f.sign_differs:.1%}"),
        ("  opposite sign", lambda f: f"{f.opposite_sign:.1%}"),
        ("  GRPO 0, GiGPO not", lambda f: f"{f.new_signal:.1%}"),
        ("  GRPO not 0, GiGPO 0", lambda f: f"{f.lost_signal:.1%}"),
        ("step level against episode level", lambda f: f"{f.levels_disagree:.1%}"),
        ("rows that need no forward: GRPO", lambda f: f"{f.no_forward_grpo:.1%}"),
        ("rows that need no forward: GiGPO", lambda f: f"{f.no_forward_gigpo:.1%}"),
    ]
    rows = [("", *(f.environment for f in found)), *((name, *(cell(f) for f in found)) for name, cell in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in rows)


def instructive_trajectory(rollouts: Rollouts, levels: GiGPOAdvantages, *, longest: int = 30) -> int:
    """The trajectory to draw, by rule: of those with at most `longest` steps, the one where GiGPO's advantage has the
    opposite sign of GRPO's at the most steps; of equals the shortest, then the first."""
    opposite = (levels.episode * levels.advantages < 0).double()
    count = len(rollouts.names)
    times = torch.zeros(count, dtype=torch.float64).index_add_(0, rollouts.trajectory, opposite)
    lengths = torch.bincount(rollouts.trajectory, minlength=count)
    eligible = [i for i in range(count) if lengths[i] <= longest]
    return min(eligible, key=lambda i: (-times[i].item(), lengths[i].item(), i))


def _trajectories_of(groups: StateGroups, rollouts: Rollouts) -> torch.Tensor:
    """(G,) how many trajectories pass through each anchor group."""
    pairs = torch.unique(torch.stack([groups.ids, rollouts.trajectory]), dim=1)
    return torch.bincount(pairs[0], minlength=len(groups.counts))


def _rows_without_forward(advantages: torch.Tensor, name: str) -> float:
    """One row a step with one trained token each: which rows could be left out of the training batch."""
    mask = torch.ones(len(advantages), 1, dtype=torch.bool)
    return 1 - _share(rows_that_matter(mask, advantages[:, None], objective=recipe(name).objective))


def _share(steps: torch.Tensor) -> float:
    return steps.double().mean().item()
