"""Returns and both advantage levels of 16,384 steps, against the loops that one would write first.

pytest bench/test_advantage.py --benchmark-only
"""

import pytest
import torch

from gigpo_fast import advantage, validation
from gigpo_fast.reference import advantage as loops

STEPS, LENGTH, TRAJECTORIES, STATES = 16384, 32, 8, 40  # 64 tasks of 8 trajectories of 32 steps, in 40 states a task
OPTIONS = dict(gamma=0.95, scale="std")


def batch(steps: int, *, shuffled: bool) -> dict[str, torch.Tensor]:
    """Sparse rewards of many sizes; shuffled rows are what a trainer that balances its micro-batches hands over."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(steps)
    columns = dict(
        rewards=torch.rand(steps, generator=generator) * (torch.rand(steps, generator=generator) < 0.1),
        trajectory=row // LENGTH,
        group=row // (LENGTH * TRAJECTORIES),
        anchor=torch.randint(0, STATES, (steps,), generator=generator),
        step=row % LENGTH,
        valid=torch.rand(steps, generator=generator) < 0.95,
    )
    order = torch.randperm(steps, generator=generator) if shuffled else row
    return {name: column[order] for name, column in columns.items()}


@pytest.mark.parametrize("rows", ["in_order", "shuffled"])
@pytest.mark.parametrize("how", ["gigpo_fast", "loops"])
def test_both_levels(benchmark, how, rows):
    columns = batch(STEPS, shuffled=rows == "shuffled")
    function = advantage.gigpo_advantages if how == "gigpo_fast" else loops.gigpo_advantages
    exact = loops.gigpo_advantages(**columns, **OPTIONS)
    benchmark.group = f"returns and both levels, {STEPS} steps, {rows}"
    benchmark.extra_info.update(steps=STEPS, threads=torch.get_num_threads(), torch=torch.__version__)
    with validation("metadata"):
        result = benchmark.pedantic(function, kwargs={**columns, **OPTIONS}, rounds=20 if how == "gigpo_fast" else 3, warmup_rounds=2)
    for ours, wanted in zip(result, exact):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["gigpo_fast", "loops"])
def test_returns(benchmark, how):
    columns = batch(STEPS, shuffled=False)
    inputs = {name: columns[name] for name in ("rewards", "trajectory", "valid")}
    function = advantage.discounted_returns if how == "gigpo_fast" else loops.discounted_returns
    benchmark.group = f"discounted returns, {STEPS} steps"
    with validation("metadata"):
        result = benchmark.pedantic(function, kwargs={**inputs, "gamma": 0.95}, rounds=20 if how == "gigpo_fast" else 3, warmup_rounds=2)
    torch.testing.assert_close(result.double(), loops.discounted_returns(**inputs, gamma=0.95), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1_000_000])
def test_a_million_steps(benchmark, steps):
    columns = batch(steps, shuffled=True)
    benchmark.group = "returns and both levels, a million steps"
    benchmark.extra_info["steps"] = steps
    with validation("metadata"):
        benchmark.pedantic(advantage.gigpo_advantages, kwargs={**columns, **OPTIONS}, rounds=2, warmup_rounds=1)
