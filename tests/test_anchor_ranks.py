"""Ids across processes: for any number of ranks, what one process gives for all rows."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gigpo_fast import anchor

STATES = ["hall", "cellar", "hall", b"hall", "\ud800", 1, True, None, "hall", "cellar", (1, "x"), (1, "x")]
GROUP = ["a", "a", "b", "a", 7, 7, 7, "a", "a", "b", "c", "c"]
VALID = [True, True, True, True, True, True, True, False, True, True, True, True]
RANKS = 3
SPLITS = {3: [0, 1, 1, 12], 2: [0, 5, 12]}  # rows of each rank; the second of three ranks has none


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    groups = {3: dist.group.WORLD, 2: dist.new_group([0, 1])}
    for ranks, process_group in groups.items():
        if rank < ranks:
            torch.save(_answers(SPLITS[ranks][rank : rank + 2], process_group), f"{folder}/{ranks}_{rank}.pt")
    dist.destroy_process_group()


def _answers(split: list[int], process_group) -> list:
    here, numbers = slice(*split), _numbers()
    offsets = torch.arange(split[1] - split[0] + 1) * 2
    return [
        anchor.group_states(STATES[here], GROUP[here], valid=VALID[here], process_group=process_group),
        anchor.group_states(numbers[here], process_group=process_group),
        anchor.group_states((numbers[here].reshape(-1), offsets), torch.tensor([0] * 12)[here], process_group=process_group),
    ]


def _numbers() -> torch.Tensor:
    return torch.tensor([[n % 3, n % 2] for n in range(12)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(path),), nprocs=RANKS)
    return path


@pytest.mark.parametrize("ranks", SPLITS)
def test_ids_do_not_depend_on_the_number_of_ranks(folder, ranks):
    answers = [torch.load(folder / f"{ranks}_{rank}.pt", weights_only=False) for rank in range(ranks)]
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
