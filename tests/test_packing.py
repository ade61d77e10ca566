"""Labels of packed sequences: from offsets and positions, in losses, and the example of docs/packing.md, which is run."""

import pathlib
import re

import pytest
import torch

from gigpo_fast import validation
from gigpo_fast.packing import sequence_ids_of, sequence_ids_of_positions

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
