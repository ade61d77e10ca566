"""Labels of packed sequences: from offsets and positions, in losses, and the example of docs/packing.md, which is run."""

import pathlib
import re

import pytest
import torch

from gigpo_fast import advantage, validation
from gigpo_fast.distributed import global_denominator
from gigpo_fast.packing import sequence_ids_of, sequence_ids_of_positions
from gigpo_fast.recipes import recipe
from tests.loss_helpers import make_batch, run_linear, run_policy
from tests.test_estimators_tokens import CASES as TOKEN_FUNCTIONS

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "packing.md").read_text(encoding="utf-8")


def slowly(starts, tokens):
    ids = [-1] * tokens
    for number, (start, stop) in enumerate(zip(starts, starts[1:])):
        ids[start:stop] = [number] * (stop - start)
    return ids


@pytest.mark.parametrize("starts", [[0, 3, 5, 9], [0, 9], [0, 0, 4, 4, 9], [0, 2, 6], [0]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_become_labels(starts, dtype):
    found = sequence_ids_of(torch.tensor(starts, dtype=dtype), torch.zeros(9))
    assert found.tolist() == slowly(starts, 9) and found.dtype == torch.int64
    assert sequence_ids_of(torch.tensor(starts, dtype=dtype), torch.zeros(1, 9)).tolist() == [slowly(starts, 9)]


def test_positions_become_labels():
    assert sequence_ids_of_positions(torch.tensor([0, 1, 2, 0, 1, 0, 0, 1])).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    rows = torch.tensor([[0, 1, 0, 1], [2, 3, 4, 0]])  # a second row never goes on with the first one's sequence
    assert sequence_ids_of_positions(rows).tolist() == [[0, 0, 1, 1], [2, 2, 2, 3]]
    assert sequence_ids_of_positions(torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("starts", [[1, 3, 9], [0, 5, 3, 9], [0, 3, 10]])
def test_offsets_that_are_none_are_refused(starts):
    match = r"sequence_ids_of: cu_seqlens must be offsets that rise from 0 to at most 9, got .*; pass what packed attention is given"
    with pytest.raises(ValueError, match=match):
        sequence_ids_of(torch.tensor(starts), torch.zeros(9))
    with validation("metadata"):
        sequence_ids_of(torch.tensor(starts), torch.zeros(9))
    lengths = torch.tensor([4, 5])
    advice = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    assert sequence_ids_of(advice, torch.zeros(9)).tolist() == [0] * 4 + [1] * 5


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"token_ids must be \(N,\) or \(1, N\), got \(2, 3\) .*; rows of a padded batch are sequences"):
        sequence_ids_of(torch.tensor([0, 3]), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="cu_seqlens must be"):
        sequence_ids_of(torch.tensor([0.0, 3.0]), torch.zeros(3))
    with pytest.raises(ValueError, match=r"cu_seqlens must be \(S \+ 1,\) offsets"):
        sequence_ids_of(torch.zeros(0, dtype=torch.int64), torch.zeros(3))
    with pytest.raises(ValueError, match=r"position_ids must be \(N,\) or \(B, T\), got \(3, 1, 4\) int64; of multimodal positions"):
        sequence_ids_of_positions(torch.zeros(3, 1, 4, dtype=torch.int64))


def test_the_page_runs():
    names: dict = {"__name__": "packing"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "packing.md", "exec"), names)
    shown = dict(re.findall(r"^(\w+)\.tolist\(\)  # (\[.*\])$", PAGE, re.MULTILINE))
    assert len(shown) >= 3
    for name, text in shown.items():
        assert str(names[name].tolist()) == text, name
    assert torch.isfinite(names["output"].loss) and torch.isfinite(names["line"].loss)
    assert torch.allclose(names["output"].loss, names["line"].loss)


def lined_up():
    """A (1, N) row of three packed sequences under a policy, and their labels."""
    b = make_batch((1, 9), dtype=torch.float64, trained=1.0)
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    b.advantages = torch.tensor([0.5, -1.0, 2.0])[ids[0]][None]
    return b, ids


@pytest.mark.parametrize("name", ["gspo", "grpo_paper", "vespo"])
@pytest.mark.parametrize("run", [run_policy, run_linear])
def test_a_packed_row_without_labels_is_refused(name, run):
    b, ids = lined_up()
    objective = recipe(name).objective
    b.ref = b.ref if objective.needs_reference else None
    message = r"policy_loss: sequence_ids must be given where .* the only row has different advantages, got None; label packed sequences with"
    with pytest.raises(ValueError, match=message):
        run(b, objective)
    with pytest.raises(ValueError, match=message):
        run(b, objective, denominator=9.0)
    packed = run(b, objective, sequence_ids=sequence_ids_of(torch.tensor([0, 3, 5, 9]), b.token_ids)).loss  # the advice, all of it
    assert packed.isfinite() and packed == run(b, objective, sequence_ids=ids).loss
    turns = run(b, objective, sequence_ids=torch.zeros_like(b.token_ids)).loss
    rows = global_denominator(b.mask.expand(2, 9), objective=objective)
    assert turns.isfinite() and turns != packed and run(b, objective, denominator=rows).loss.isfinite()
    b.advantages = torch.where(b.mask, 0.5, 0.0)
    assert run(b, objective).loss.isfinite()  # nothing that could be told


@pytest.mark.parametrize("name", TOKEN_FUNCTIONS)
def test_advantages_take_the_labels_that_losses_take(name):
    """Every token labelled; -1 at a trained token and at a masked one between two of one sequence refused; padding is anywhere else."""
    function, _ = TOKEN_FUNCTIONS[name]
    drawn = torch.Generator().manual_seed(1)
    batch = {key: torch.rand(3, 8, generator=drawn, dtype=torch.float64) for key in ("rewards", "values", "lam", "other")}
    batch["mask"] = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 1, 0]], dtype=torch.bool)
    packed = {key: value.flatten() for key, value in batch.items()}
    ids = torch.tensor([70, 3, 10**15]).repeat_interleave(8)
    want = function(advantage, packed, sequence_ids=ids)
    assert torch.equal(want, function(advantage, batch).flatten())
    padding = torch.where(torch.arange(24) % 8 == 0, torch.where(packed["mask"], ids, -1), ids)  # before a sequence's first token
    assert torch.equal(function(advantage, packed, sequence_ids=padding), want)
    for place, match in ((2, r"labels >= 0 at trained tokens, got -1 at \[2\]"), (3, r"also at a masked token .*, got -1 at \[3\]")):
        wrong = ids.clone()
        wrong[place] = -1
        with pytest.raises(ValueError, match="sequence_ids must be .*" + match + "; give every token of a sequence its label"):
            function(advantage, packed, sequence_ids=wrong)
        with validation("metadata"):
            assert function(advantage, packed, sequence_ids=wrong)[packed["mask"]].isnan().all()


def test_padding_between_rows_of_one_sequence_is_no_hole():
    rewards, mask = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]]), torch.tensor([[True, True, False], [True, False, True]])
    ids = torch.tensor([[4, 4, -1], [4, 4, 4]])
    assert advantage.token_returns(rewards, mask, sequence_ids=ids).tolist() == [[6.0, 6.0, 0.0], [5.0, 0.0, 3.0]]
