"""Grouping lists of observations against the dictionaries and libraries that one would use first; packed bytes in GB/s.

    pytest bench/test_anchor.py --benchmark-only

Every round gets new str objects, as every rollout does: a str keeps its hash, and a second round on the same objects would time less.
"""

import random

import pytest
import torch
from timing import paired

from gigpo_fast import anchor

STATES, ROUNDS = 20_000, 7
SHAPES = {"short": 200, "long": 2000}  # letters of an observation; a tenth of them are different


def observations(letters: int) -> list[str]:
    draw = random.Random(0)
    pool = ["".join(draw.choices("abcdefgh ", k=letters - 8)) + f"{number:08}" for number in range(STATES // 10)]
    return [draw.choice(pool) for _ in range(STATES)]


def fresh_copies(states: list[str], count: int):
    """Iterate over `count` lists of equal, new str objects."""
    return iter([[state[:1] + state[1:] for state in states] for _ in range(count)])


def by_dict(states):
    number: dict[str, int] = {}
    return [number.setdefault(state, len(number)) for state in states]


def by_xxhash_and_dict(states):
    xxhash = pytest.importorskip("xxhash", reason="pip install xxhash")
    number: dict[bytes, int] = {}
    return [number.setdefault(xxhash.xxh3_128_digest(state.encode()), len(number)) for state in states]


def by_polars(states):
    polars = pytest.importorskip("polars", reason="pip install polars")
    return polars.Series(states).cast(polars.Categorical).to_physical()


PEERS = {"dict": by_dict, "xxhash and dict": by_xxhash_and_dict, "polars": by_polars}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("peer", PEERS)
def test_list_of_str(benchmark, report_ratio, peer, shape):
    states = observations(SHAPES[shape])
    expected = by_dict(states)
    assert anchor.group_states(states).ids.tolist() == expected
    if peer != "polars":  # its codes belong to a table that the process shares
        assert list(PEERS[peer](states)) == expected
    else:
        assert by_dict(by_polars(states).to_list()) == expected
    path = anchor.paths.path()[0]
    theirs, ours = fresh_copies(states, ROUNDS + 1), fresh_copies(states, ROUNDS + 2)
    benchmark.group = f"anchor ids of {STATES} str of {SHAPES[shape]} letters"
    benchmark.extra_info["our_path"] = path
    ratio = paired(benchmark, lambda: PEERS[peer](next(theirs)), lambda: anchor.group_states(next(ours)), rounds=ROUNDS)
    report_ratio(f"{benchmark.group}, {path} path: {ratio:5.2f} x {peer}")


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_bytes(benchmark, report_ratio, shape):
    width = SHAPES[shape]
    pool = torch.randint(0, 256, (STATES // 10, width), dtype=torch.uint8)
    states = pool[torch.randint(0, len(pool), (STATES,))]
    benchmark.group = f"anchor ids of {STATES} rows of {width} bytes"
    found = benchmark.pedantic(anchor.group_states, args=(states,), rounds=ROUNDS, warmup_rounds=1)
    assert torch.equal(states[found.first_row][found.ids], states)
    rate = states.numel() / benchmark.stats.stats.median / 1e9
    benchmark.extra_info["gigabytes_per_second"] = rate
    report_ratio(f"{benchmark.group}, {anchor.paths.path()[0]} path: {rate:.2f} GB/s")
