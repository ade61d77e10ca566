"""Ids across processes: for any number of ranks, what one process gives for all rows."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gigpo_fast import anchor

STATES = ["hall", "cellar", "hall", b"hall", "\ud800", 1, True, None, "hall", "cellar", (1, "x"), (1, "x")]
GROUP = ["a", "a", "b", "a", 7, 7, 7, "a", "a", "b", "c", "c"]
VALID = [True, True, True, True, True, True, True, False, True, True, True, True]
SPLITS = {2: [0, 5, 12], 3: [0, 1, 1, 12]}  # the second of three ranks has no row


def _rank(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    begin, end = SPLITS[ranks][rank : rank + 2]
    here = slice(begin, end)
    numbers, offsets = _numbers(), torch.arange(end - begin + 1) * 2
    answers = [
        anchor.group_states(STATES[here], GROUP[here], valid=VALID[here], process_group=dist.group.WORLD),
        anchor.group_states(numbers[here], process_group=dist.group.WORLD),
        anchor.group_states((numbers[here].reshape(-1), offsets), torch.tensor([0] * 12)[here], process_group=dist.group.WORLD),
    ]
    torch.save(answers, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _numbers() -> torch.Tensor:
    return torch.tensor([[n % 3, n % 2] for n in range(12)])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ids_do_not_depend_on_the_number_of_ranks(tmp_path, ranks):
    mp.spawn(_rank, (ranks, str(tmp_path)), nprocs=ranks)
    answers = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    whole = [anchor.group_states(STATES, GROUP, valid=VALID), anchor.group_states(_numbers()), anchor.group_states(_numbers())]
    for case, expected in enumerate(whole):
        assert torch.equal(torch.cat([answer[case].ids for answer in answers]), expected.ids)
        for answer in answers:
            assert torch.equal(answer[case].first_row, expected.first_row)
            assert torch.equal(answer[case].counts, expected.counts)


def test_one_rank_is_the_local_answer(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        found = anchor.group_states(STATES, GROUP, valid=VALID, process_group=dist.group.WORLD)
        for got, expected in zip(found, anchor.group_states(STATES, GROUP, valid=VALID)):
            assert torch.equal(got, expected)
        with pytest.raises(TypeError, match="group must be str, int or other plain values when process_group is given"):
            anchor.group_states(["a"], [object], process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
