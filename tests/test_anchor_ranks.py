"""Ids across processes: for any number of ranks and any sharding, what one process gives for all rows; and what travels."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gigpo_fast import anchor
from gigpo_fast.anchor import exchange

STATES = ["hall", "cellar", "hall", b"hall", "\ud800", 1, True, None, "hall", "cellar", (1, "x"), (1, "x")]
GROUP = ["a", "a", "b", "a", 7, 7, 7, "a", "a", "b", "c", "c"]
VALID = [True, True, True, True, True, True, True, False, True, True, True, True]
MANY = [f"room {number % 37}" for number in range(200)]
RANKS = 4
SPLITS = {  # rows of each rank, for lists of 12 and, times 16, cut at 200, for MANY
    "four": [0, 3, 3, 4, 12],  # the second has none
    "four, all on the last": [0, 0, 0, 0, 12],
    "three": [0, 1, 1, 12],
    "two": [0, 5, 12],
}


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in (2, 3, 4)}
    for name, split in SPLITS.items():
        if rank < len(split) - 1:
            torch.save(_answers(split[rank : rank + 2], groups[len(split) - 1]), f"{folder}/{name}_{rank}.pt")
    try:
        anchor.group_states(["a"], [object if rank == 1 else "x"], process_group=groups[4])
        message = "no error"
    except (TypeError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    torch.save((message, _bytes_sent(rank, groups[2]) if rank < 2 else None), f"{folder}/rank_{rank}.pt")
    dist.destroy_process_group()


def _answers(split: list[int], process_group) -> list:
    here, numbers = slice(*split), _numbers()
    many = slice(*[200 if bound == 12 else min(16 * bound, 200) for bound in split])
    offsets = torch.arange(split[1] - split[0] + 1) * 2
    return [
        anchor.group_states(STATES[here], GROUP[here], valid=VALID[here], process_group=process_group),
        anchor.group_states(numbers[here], process_group=process_group),
        anchor.group_states((numbers[here].reshape(-1), offsets), torch.tensor([0] * 12)[here], process_group=process_group),
        anchor.group_states(MANY[many], process_group=process_group),
        anchor.group_states(MANY[many], process_group=process_group, _debug_hash_bits=4),
        anchor.group_states(MANY[many], process_group=process_group, _debug_hash_bits=1),
    ]


def _whole() -> list:
    many = anchor.group_states(MANY)
    return [anchor.group_states(STATES, GROUP, valid=VALID), *[anchor.group_states(_numbers())] * 2, many, many, many]


def _numbers() -> torch.Tensor:
    return torch.tensor([[n % 3, n % 2] for n in range(12)])


def _bytes_sent(rank: int, process_group) -> list[int]:
    """How many bytes of states this rank sent: nothing in common, one of ten states in common, all in common."""
    sent, exchanged = [], exchange.Ranks.exchanged

    def watched(self, rows, counts):
        if rows.dtype == torch.uint8:
            sent.append(rows.numel())
        return exchanged(self, rows, counts)

    exchange.Ranks.exchanged = watched
    try:
        for common in (0, 1, 10):
            states = [f"{'both' if number < common else rank}: state {number}".ljust(1000) for number in range(10)]
            anchor.group_states(states * 3, process_group=process_group)
    finally:
        exchange.Ranks.exchanged = exchanged
    return sent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(path),), nprocs=RANKS)
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_ids_do_not_depend_on_the_number_of_ranks(folder, split):
    answers = [torch.load(folder / f"{split}_{rank}.pt", weights_only=False) for rank in range(len(SPLITS[split]) - 1)]
    for case, expected in enumerate(_whole()):
        assert torch.equal(torch.cat([answer[case].ids for answer in answers]), expected.ids), case
        for answer in answers:
            assert torch.equal(answer[case].first_row, expected.first_row), case
            assert torch.equal(answer[case].counts, expected.counts), case


def test_bytes_travel_only_where_fingerprints_came_twice(folder):
    encoded = 1000 + 9  # a type and a length
    for rank in range(2):
        assert torch.load(folder / f"rank_{rank}.pt", weights_only=False)[1] == [0, encoded, 10 * encoded]


def test_an_error_of_one_rank_ends_all(folder):
    for rank in range(RANKS):
        message, _ = torch.load(folder / f"rank_{rank}.pt", weights_only=False)
        if rank == 1:
            assert message.startswith("TypeError: group_states: group must be str, int or other plain values when process_group is given")
        else:
            assert message == "RuntimeError: group_states: another rank could not name its groups; its own message says why"


def test_one_rank_is_the_local_answer(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        found = anchor.group_states(STATES, GROUP, valid=VALID, process_group=dist.group.WORLD)
        for got, expected in zip(found, anchor.group_states(STATES, GROUP, valid=VALID)):
            assert torch.equal(got, expected)
        nothing = anchor.group_states([], process_group=dist.group.WORLD)
        assert [part.tolist() for part in nothing] == [[], [], []]
        with pytest.raises(TypeError, match="group must be str, int or other plain values when process_group is given"):
            anchor.group_states(["a"], [object], process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
