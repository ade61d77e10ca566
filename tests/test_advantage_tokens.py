"""From steps to tokens: numbering, garbage, and one batch in three layouts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage, validation
from gigpo_fast.reference import advantage as reference

MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)


def test_rows_are_steps():
    assert advantage.step_ids(MASK).tolist() == [[-1, 0, 0, -1, 0], [1, 1, -1, -1, 1], [-1] * 5, [3, -1, 3, -1, 3]]


def test_runs_are_steps():
    # The last token of row 0 and the first of row 1 touch in memory but belong to different rows.
    assert advantage.step_ids(MASK, turns=True).tolist() == [[-1, 0, 0, -1, 1], [2, 2, -1, -1, 3], [-1] * 5, [4, -1, 5, -1, 6]]


def test_to_tokens():
    ids = advantage.step_ids(MASK, turns=True)
    values = torch.tensor([0.5, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    tokens = advantage.to_tokens(values, ids)
    assert tokens.tolist() == [[0, 0.5, 0.5, 0, -1], [2, 2, 0, 0, 3], [0] * 5, [4, 0, 5, 0, 6]]
    assert torch.equal(advantage.to_tokens(values.double(), ids.flatten()), tokens.double().flatten())
    assert advantage.to_tokens(torch.zeros(0), torch.full((2, 3), -1)).tolist() == [[0.0] * 3] * 2
    rows = torch.tensor([0.5, -1.0, float("nan"), 2.0])  # a row, which is a step, without tokens
    assert advantage.to_tokens(rows, advantage.step_ids(MASK))[3].tolist() == [2.0, 0, 2.0, 0, 2.0]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=0, max_size=5), st.booleans())
def test_ids_agree_with_the_reference(rows, turns):
    mask = torch.tensor(rows, dtype=torch.bool).view(-1, 6)
    ids = advantage.step_ids(mask, turns=turns)
    assert ids.dtype == torch.int64 and torch.equal(ids, reference.step_ids(mask, turns=turns))
    values = torch.randn(int(ids.max()) + 1 if turns and ids.numel() else len(mask))
    assert torch.equal(advantage.to_tokens(values, ids).double(), reference.to_tokens(values, ids))


def test_three_layouts_give_every_token_the_same_advantage():
    """One row a step, one row a trajectory, and no rows at all: each built from the same steps, each with labels of its own."""
    generator = torch.Generator().manual_seed(3)
    trajectories = [int(n) for n in torch.randint(1, 5, (12,), generator=generator)]
    trajectory = torch.cat([torch.full((n,), i) for i, n in enumerate(trajectories)])
    steps = len(trajectory)
    lengths = torch.randint(1, 6, (steps,), generator=generator).tolist()
    rewards = torch.randn(steps, generator=generator)
    anchor = torch.randint(0, 3, (steps,), generator=generator)
    options = dict(gamma=0.95, scale="std", step_weight=0.8)

    # One row a step: the trainer has shuffled the rows, so it passes the time of each.
    rows = torch.randperm(steps, generator=generator)
    time = torch.cat([torch.arange(n) for n in trajectories])
    mask = torch.zeros(steps, 9, dtype=torch.bool)
    for row, step in enumerate(rows.tolist()):
        mask[row, 2 : 2 + lengths[step]] = True  # two tokens of prompt
    values = advantage.gigpo_advantages(rewards[rows], trajectory[rows], trajectory[rows] // 4, anchor[rows], step=time[rows], **options)
    tokens = advantage.to_tokens(values.advantages, advantage.step_ids(mask))
    inverse = torch.argsort(rows)
    per_step = tokens[inverse][mask[inverse]]

    # One row a trajectory: turns stand one after another, each behind one token of observation; names are strings.
    mask = torch.zeros(len(trajectories), 6 * max(trajectories), dtype=torch.bool)
    step = 0
    for row, turns in enumerate(trajectories):
        column = 0
        for _ in range(turns):
            mask[row, column + 1 : column + 1 + lengths[step]] = True
            column, step = column + 1 + lengths[step], step + 1
    names = [f"trajectory {i}" for i in trajectory.tolist()]
    tasks = [f"task {i // 4}" for i in trajectory.tolist()]
    states = [f"state {i}" for i in anchor.tolist()]
    values = advantage.gigpo_advantages(rewards, names, tasks, states, **options)
    ids = advantage.step_ids(mask, turns=True)
    assert ids.max() == steps - 1
    per_trajectory = advantage.to_tokens(values.advantages, ids)[mask]

    # Packed: trained and other tokens of all steps in one line.
    packed_ids = torch.cat([torch.tensor([-1, *[step] * length]) for step, length in enumerate(lengths)])
    packed = advantage.to_tokens(advantage.gigpo_advantages(rewards, trajectory, trajectory // 4, anchor, **options).advantages, packed_ids)

    assert torch.equal(per_step, per_trajectory) and torch.equal(per_trajectory, packed[packed_ids >= 0])
    assert not packed[packed_ids < 0].any()
    assert per_step.abs().max() > 0.5  # not all zeros


def test_messages():
    with pytest.raises(TypeError, match=r"step_ids: mask must be \(4, 5\) bool .*, got \(4, 5\) float32; use mask.bool\(\)"):
        advantage.step_ids(MASK.float())
    with pytest.raises(ValueError, match=r"step_ids: mask must be \(any, any\), got \(5,\) bool; pass a mask with one row per sequence"):
        advantage.step_ids(MASK[0])
    with pytest.raises(
        TypeError, match=r"to_tokens: step_ids must be \(4, 5\) int64, got \(4, 5\) bool; advantage.step_ids\(mask\) makes them"
    ):
        advantage.to_tokens(torch.zeros(4), MASK)
    with pytest.raises(ValueError, match=r"to_tokens: advantages must be \(any,\)"):
        advantage.to_tokens(torch.zeros(4, 1), advantage.step_ids(MASK))


@pytest.mark.parametrize("wrong", [4, -2, 2**40])
def test_ids_of_no_step_are_named(wrong):
    ids = torch.tensor([0, wrong, 3])
    with pytest.raises(
        ValueError, match=r"to_tokens: step_ids must be in \[-1, 4\) for 4 advantages, got an id outside in rows 1; compute"
    ):
        advantage.to_tokens(torch.zeros(4), ids)
    with validation("metadata"):  # where checking would wait for a device: never a wild read
        found = advantage.to_tokens(torch.zeros(4), ids)
    assert found[1].isnan()


def test_advantages_that_are_left_over_are_refused():
    """turns=True forgotten, a micro-batch's ids with the batch's advantages, a last step without a trained token."""
    values, ids = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, 0.5, 4.0]), advantage.step_ids(MASK, turns=True)
    want = advantage.to_tokens(values, ids)
    last = torch.cat([values, values[:1]])
    for advantages, wrong, known in ((values, advantage.step_ids(MASK), 4), (values, ids[:2], 4), (last, ids, 7), (values, ids[:0], 0)):
        message = rf"to_tokens: advantages must be \({known},\), one a step of step_ids, got \({len(advantages)},\) float32; where a row holds"
        with pytest.raises(ValueError, match=message + r" several steps make ids with step_ids\(mask, turns=True\); spread the whole batch"):
            advantage.to_tokens(advantages, wrong)
        with validation("metadata"):
            assert advantage.to_tokens(advantages, wrong).isnan().all()
    assert torch.equal(advantage.to_tokens(values, ids)[:2], want[:2]) and torch.equal(advantage.to_tokens(last[:-1], ids), want)  # the advice


def test_too_few_advantages_are_refused():
    with pytest.raises(ValueError, match=r"step_ids must be in \[-1, 2\) for 2 advantages, got an id outside in rows .*; compute"):
        advantage.to_tokens(torch.zeros(2), advantage.step_ids(MASK))
