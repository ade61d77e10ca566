"""Returns and both levels of GiGPO: against the loops that one would write first, and each of our paths against the other.

    pytest bench/test_advantage.py --benchmark-only            # 16,384 and a million steps
    pytest bench/test_advantage.py --benchmark-only --large    # and ten million

Every peer gives the same advantages, checked before it is timed: all rows valid, each row counted, raw scores from lone trajectories.
"""

import collections

import pytest
import torch

from bench.timing import paired
from gigpo_fast import advantage, backend, validation

LENGTH, TRAJECTORIES, STATES = 32, 8, 40  # 8 trajectories of 32 steps a task, in 40 states
OPTIONS = {"gamma": 0.95, "scale": "std", "statistics": advantage.VERL_AGENT}
EPS = 1e-6


def batch(steps: int, *, shuffled: bool) -> dict[str, torch.Tensor]:
    """Sparse rewards of many sizes. Shuffled: whole trajectories stay in time order, their rows stand anywhere between the others'."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(steps)
    columns = {
        "rewards": torch.rand(steps, generator=generator) * (torch.rand(steps, generator=generator) < 0.1),
        "trajectory": row // LENGTH,
        "group": row // (LENGTH * TRAJECTORIES),
        "anchor": torch.randint(0, STATES, (steps,), generator=generator),
    }
    if not shuffled:
        return columns
    # The rows of a trajectory take random places, in increasing order.
    whole = steps // LENGTH * LENGTH
    place = torch.randperm(steps, generator=generator)
    place = torch.cat([place[:whole].view(-1, LENGTH).sort(1).values.flatten(), place[whole:].sort().values])
    order = torch.empty(steps, dtype=torch.int64).scatter_(0, place, row)
    return {name: column[order] for name, column in columns.items()}


def by_loops(rewards, trajectory, group, anchor) -> tuple[torch.Tensor, ...]:
    """The steps of the public implementation: a search of all rows for each trajectory, lists of scalars in dictionaries."""
    returns, episode = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for name in trajectory.unique():
        rows = (trajectory == name).nonzero().flatten().tolist()
        running = 0.0
        for row in reversed(rows):
            running = rewards[row] + OPTIONS["gamma"] * running
            returns[row] = running
        episode[rows] = rewards[rows].sum()
    macro = _standardised(episode, list(zip(group.tolist())), lone_mean_is_zero=True)
    micro = _standardised(returns, list(zip(group.tolist(), anchor.tolist())), lone_mean_is_zero=False)
    return macro + micro, macro, micro, returns


def _standardised(scores: torch.Tensor, names: list, *, lone_mean_is_zero: bool) -> torch.Tensor:
    members = collections.defaultdict(list)
    for row, name in enumerate(names):
        members[name].append(scores[row])
    mean, deviation = {}, {}
    for name, values in members.items():
        if len(values) == 1:
            mean[name], deviation[name] = torch.tensor(0.0) if lone_mean_is_zero else values[0], torch.tensor(1.0)
        else:
            together = torch.tensor(values)
            mean[name], deviation[name] = together.mean(), together.std()
    return torch.stack([(scores[row] - mean[name]) / (deviation[name] + EPS) for row, name in enumerate(names)])


def on_path(name: str):
    """Ours, on one path."""

    def run(**columns):
        with backend.use(name):
            return advantage.gigpo_advantages(**columns, **OPTIONS)

    return run


@pytest.fixture(autouse=True)
def _as_in_training():
    with validation("metadata"):
        yield


@pytest.mark.parametrize("rows", ["in order", "shuffled"])
@pytest.mark.parametrize("peer", ["loops", "torch path"])
@pytest.mark.parametrize("steps", [16_384, 1_000_000, 10_000_000])
def test_both_levels(benchmark, report_ratio, request, peer, rows, steps):
    if steps > 1_000_000 and not request.config.getoption("--large"):
        pytest.skip("takes minutes and 4 GB: --large")
    if steps > 16_384 and peer == "loops":
        pytest.skip("loops that search all rows for each trajectory take hours here")
    tiny = request.config.getoption("shapes") == "tiny"
    steps = min(steps, 2048) if tiny else steps
    columns = batch(steps, shuffled=rows == "shuffled")
    ours, theirs = on_path("auto"), by_loops if peer == "loops" else on_path("torch")
    close(ours(**columns), theirs(**columns))
    benchmark.group = f"returns and both levels, {steps:,} steps, {rows}"
    rounds = 1 if tiny else 3 if peer == "loops" or steps > 1_000_000 else 30 if steps < 100_000 else 7
    ratio = paired(benchmark, lambda: theirs(**columns), lambda: ours(**columns), rounds=rounds)
    took = benchmark.extra_info["ours_median_seconds"] * 1e3
    report_ratio(f"{benchmark.group}, {backend.choose(torch.device('cpu'))} path, {took:.1f} ms: {ratio:7.2f} x {peer}")


@pytest.mark.parametrize("peer", ["loops", "torch path"])
def test_returns(benchmark, report_ratio, peer):
    columns = batch(16_384, shuffled=True)
    rewards, trajectory = columns["rewards"], columns["trajectory"]

    def ours(path="auto"):
        with backend.use(path):
            return advantage.discounted_returns(rewards, trajectory, gamma=0.95)

    def loops():
        returns, following = [0.0] * len(rewards), {}
        numbers, names = rewards.tolist(), trajectory.tolist()
        for row in reversed(range(len(numbers))):  # the best loop, not the public one: every row is looked at once
            returns[row] = following[names[row]] = numbers[row] + 0.95 * following.get(names[row], 0.0)
        return torch.tensor(returns)

    theirs = loops if peer == "loops" else lambda: ours("torch")
    close([ours()], [theirs()])
    benchmark.group = "discounted returns, 16,384 steps, shuffled"
    report_ratio(f"{benchmark.group}: {paired(benchmark, theirs, ours, rounds=30):7.2f} x {peer}")


def close(ours, theirs) -> None:
    for one, other in zip(ours, theirs):
        # The loops work in float32; a group that is constant but for rounding is divided by 1e-6.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
