"""Which scores a group's statistics count, and what happens in the groups that have none to speak of.

Frameworks disagree here without saying so; each convention is one field, and each framework's choice one constant.
"""

from dataclasses import dataclass

from .. import checks


@dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """How the mean and the standard deviation of a group are taken.

    count: "trajectory" counts every trajectory once, with the mean of its rows' scores; "row" counts every row, so that a
        trajectory of 30 steps weighs ten times as much as one of 3. Of the episode level only: an anchor state's group always
        counts every visit.
    singleton: what a group of one gets. "zero": advantage 0, since there is nothing to compare with. "raw": mean 0 and standard
        deviation 1, so the score itself (score / (1 + eps) with scale="std"). Of the episode level only: a state seen once is
        compared with itself and gets 0 under either.
    zero_variance: what scale="std" does where all counted scores of a group are equal. "zero": exactly 0. "divide": by eps.
    eps: added to the standard deviation.
    ddof: 1 divides the sum of squares by n - 1, 0 by n.
    """

    count: str = "trajectory"
    singleton: str = "zero"
    zero_variance: str = "zero"
    eps: float = 1e-6
    ddof: int = 1

    def __post_init__(self) -> None:
        allowed = {"count": ("trajectory", "row"), "singleton": ("zero", "raw"), "zero_variance": ("zero", "divide"), "ddof": (0, 1)}
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices or (name == "ddof" and checks.whole(value) is None):
                checks.fail(
                    "GroupStatistics", name, " or ".join(map(repr, choices)), value, "see CORRECTED, VERL_AGENT and ROLL for whole sets"
                )
        checks.number("GroupStatistics", "eps", self.eps, at_least=0.0, fix="1e-6 is usual")
        if self.zero_variance == "divide" and self.eps == 0.0:
            checks.fail("GroupStatistics", "eps", 'above 0 with zero_variance="divide"', self.eps, 'use zero_variance="zero" or eps=1e-6')


# Every trajectory once, nothing from a group of one, exact zeros where all scores are equal.
CORRECTED = GroupStatistics()

# verl's GRPO, where a row is a trajectory; also One-shot RLVR: a lone row passes its raw score on.
VERL = GroupStatistics(singleton="raw", zero_variance="divide")

# The same as CORRECTED but for what stands beside the deviation.
TRL = GroupStatistics(eps=1e-4)
AREAL = GroupStatistics(eps=1e-5)
OPENRLHF = GroupStatistics(eps=1e-9)

# verl-agent as it runs: every step row counts, a lone row passes its raw score on, constant groups are divided by eps.
VERL_AGENT = GroupStatistics(count="row", singleton="raw", zero_variance="divide")

# ROLL: every row counts, lone rows and constant groups give 0. (ROLL takes any standard deviation up to 1e-6 for constant.)
ROLL = GroupStatistics(count="row")


def check_options(function: str, scale: str | None, statistics: GroupStatistics, name: str = "statistics") -> None:
    """Check the two options that every group-relative advantage takes; `name` is what the caller calls the second."""
    if scale not in (None, "std"):
        checks.fail(function, "scale", "None or 'std'", scale, 'pass scale="std" to divide by the standard deviation of the group')
    if not isinstance(statistics, GroupStatistics):
        fix = "pass CORRECTED, VERL_AGENT, ROLL or a GroupStatistics of your own"
        checks.fail(function, name, "a GroupStatistics", statistics, fix, error=TypeError)
