"""GiGPOCredit's records, without TRL: what is written is what was used, on rank 0, in every n-th iteration."""

import pytest
import torch

from gigpo_fast import rollouts
from gigpo_fast.integrations.trl_gigpo import GiGPOCredit

MASK = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]]).bool()
TURNS = [(["s", "t"], [0.0, 1.0]), (["s"], [0.0]), (["s", "s"], [1, 0]), (["u"], [0.5])]
EPISODE = torch.tensor([0.5, -0.5, 0.25, -0.25])


def test_what_was_used_is_recorded(tmp_path):
    credit = GiGPOCredit(gamma=0.5, step_weight=2.0, record=tmp_path, every=3)
    for iteration in range(4):
        episodes = EPISODE.tolist() if credit.records(iteration) else None
        found, met = credit.token_advantages(EPISODE, MASK, TURNS, 0, 2, None, iteration=iteration, episodes=episodes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.jsonl.gz", "000003.jsonl.gz"]
    plain, _ = GiGPOCredit(gamma=0.5, step_weight=2.0).token_advantages(EPISODE, MASK, TURNS, 0, 2, None)
    assert torch.equal(found, plain)
    read = rollouts.read(tmp_path / "000003.jsonl.gz")
    assert read.columns["task"] == [0, 0, 0, 1, 1, 1] and read.columns["trajectory"] == [0, 0, 1, 2, 2, 3]
    assert read.columns["step"] == [0, 1, 0, 0, 1, 0] and read.columns["state"] == ["s", "t", "s", "s", "s", "u"]
    assert read.columns["reward"] == [0.0, 1.0, 0.0, 1.0, 0.0, 0.5] and read.columns["state_id"] == [0, 1, 0, 2, 2, 3]
    assert read.columns["step_advantage"] == [0.25, 0.0, -0.25, 0.5, -0.5, 0.0]  # by hand: returns 0.5 and 0, then 1 and 0
    assert read.columns["advantage"] == plain[MASK].tolist()
    assert read.settings[3] | {"statistics": None} == {"gamma": 0.5, "step_weight": 2.0, "scale": None, "statistics": None}


def test_the_first_rank_records_the_rows_of_all(tmp_path, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        rows = slice(2 * rank, 2 * rank + 2)
        credit = GiGPOCredit(record=tmp_path / str(rank))
        credit.token_advantages(EPISODE[rows], MASK[rows], TURNS, 2 * rank, 2, None, iteration=0, episodes=EPISODE.tolist())
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert len(rollouts.read(tmp_path / "0")) == 6


def test_every_is_read_or_refused():
    with pytest.raises(ValueError, match="GiGPOCredit: every must be left out, got 2; it is read with record=FOLDER only"):
        GiGPOCredit(every=2)
    with pytest.raises(ValueError, match="GiGPOCredit: every must be an integer >= 1, got 0; 1 records every generation batch"):
        GiGPOCredit(record="x", every=0)
