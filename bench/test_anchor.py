"""Grouping states against the dictionaries and libraries that one would use first: Python lists, host buffers, tensors on the device.

    pytest bench/test_anchor.py --benchmark-only                  # up to 10^5 states, two minutes
    pytest bench/test_anchor.py --benchmark-only --large          # up to 10^7, in gigabytes
    pytest bench/test_anchor.py --benchmark-only --shapes gpu     # states on the device

Every peer gives the same groups, checked before it is timed. With --shapes tiny everything runs once, on few states.
"""

import random
import uuid
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench import anchor_peers as peers
from bench.anchor_peers import Size
from bench.timing import paired, peak_bytes, seconds_of
from gigpo_fast import anchor

LISTS = [Size(10_000, 8), Size(20_000, 200), Size(20_000, 2000), Size(2_000, 16_384), Size(100_000, 200)]
BUFFERS = [Size(100_000, 8), Size(100_000, 200), Size(20_000, 2048), Size(2_000, 16_384)]
LARGE = [Size(1_000_000, 200), Size(10_000_000, 8), Size(10_000_000, 200)]
SLOWER = {"numpy.unique": 20_000, "torch.unique": 100_000, "pandas.factorize": 1_000_000}  # most rows; more take minutes


@pytest.fixture
def sized(request):
    """A Size as it is to run: cut short for tiny shapes, left out where it is large and nobody asked for that."""

    def cut(size: Size, peer: str = "") -> Size:
        config = request.config
        if config.getoption("shapes") == "tiny":
            return Size(min(size.states, 300), size.width)
        if size in LARGE and not config.getoption("--large"):
            pytest.skip("takes minutes and gigabytes: --large")
        if size.states > SLOWER.get(peer, size.states):
            pytest.skip(f"{peer} takes minutes for {size}")
        return size

    return cut


def draw_rows(size: Size, distribution: str = "uniform") -> np.ndarray:
    draw = np.random.default_rng(0)
    return peers.rows_of(size, peers.DISTRIBUTIONS[distribution](size.states, draw), draw)


def rounds_for(size: Size) -> int:
    return 3 if size.states * (size.width + 100) > 1e8 else 9


def told(seconds: float, size: Size) -> str:
    """Our own time, a state and as bytes a second."""
    return f"{seconds / size.states * 1e9:6.0f} ns a state, {size.states * size.width / seconds / 1e9:5.2f} GB/s"


def paired_on_new_texts(benchmark, peer: Callable, rows: np.ndarray, *, rounds: int) -> float:
    """`paired`, with str objects that nobody has looked at for every run of either."""
    mine, theirs = ([peers.texts(rows) for _ in range(rounds + extra)] for extra in (1, 0))
    return paired(benchmark, lambda: peer(theirs.pop()), lambda: anchor.group_states(mine.pop()), rounds=rounds)


@pytest.mark.parametrize("size", LISTS + LARGE[:1], ids=str)
@pytest.mark.parametrize("peer", peers.LIST_PEERS)
def test_list_of_str(benchmark, report_ratio, sized, peer, size):
    size, run = sized(size, peer), peers.LIST_PEERS[peer]
    rows = draw_rows(size)
    states = peers.texts(rows)
    assert peers.same_groups(run(states), anchor.group_states(states).ids)
    benchmark.group = f"list of str, {size}"
    ratio = paired_on_new_texts(benchmark, run, rows, rounds=rounds_for(size))
    report_ratio(f"{benchmark.group}, {told(benchmark.extra_info['ours_median_seconds'], size)}: {ratio:7.2f} x {peer}")


@pytest.mark.parametrize("size", LISTS, ids=str)
def test_list_against_one_copy(benchmark, report_ratio, sized, size):
    """What reading the objects takes: CPython's own `join` copies every text once, looks nothing up and compares nothing."""
    size = sized(size)
    benchmark.group = f"list of str, {size}, limit"
    ratio = paired_on_new_texts(benchmark, "".join, draw_rows(size), rounds=rounds_for(size))
    report_ratio(f"list of str, {size}, {told(benchmark.extra_info['ours_median_seconds'], size)}: {ratio:7.2f} x one copy of the texts")


@pytest.mark.parametrize("steps", [16_384, 131_072])
def test_public_implementation(benchmark, report_ratio, request, steps):
    """Tasks of 256 steps, labelled by uuid strings; ours gets the same two lists."""
    steps = 512 if request.config.getoption("shapes") == "tiny" else steps
    size, draw = Size(steps, 200), random.Random(0)
    rows, tasks = draw_rows(size), [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(steps // 256)]
    group, states = [tasks[row // 256] for row in range(steps)], peers.texts(rows)
    assert peers.same_groups(peers.by_public_steps(states, group), anchor.group_states(states, group).ids)
    mine = [peers.texts(rows) for _ in range(4)]
    benchmark.group = f"list of str in tasks of 256, {size}"
    ratio = paired(benchmark, lambda: peers.by_public_steps(states, group), lambda: anchor.group_states(mine.pop(), group), rounds=3)
    report_ratio(f"{benchmark.group}: {ratio:7.1f} x the public GiGPO steps")


@pytest.mark.parametrize("size", BUFFERS + LARGE, ids=str)
@pytest.mark.parametrize("peer", peers.BUFFER_PEERS)
def test_rows_of_a_buffer(benchmark, report_ratio, sized, device, peer, size):
    """On a CPU a NumPy array, for torch.unique a tensor; on a GPU a tensor there, and only torch.unique."""
    size, run = sized(size, peer), peers.BUFFER_PEERS[peer]
    rows = draw_rows(size)
    states = torch.from_numpy(rows).to(device) if peer == "torch.unique" else rows
    if device.type == "cuda" and peer != "torch.unique":
        pytest.skip(f"{peer} has nothing for rows on a GPU")
    found = anchor.group_states(states)
    assert same_rows(torch.from_numpy(rows).to(device), found)
    if size.states <= 1_000_000:
        assert peers.same_groups(run(states), found.ids.cpu())

    def ours():
        anchor.group_states(states)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"rows of a buffer, {size}"
    ratio = paired(benchmark, lambda: run(states), ours, rounds=rounds_for(size))
    report_ratio(f"{benchmark.group}, {told(benchmark.extra_info['ours_median_seconds'], size)}: {ratio:7.2f} x {peer}")


def same_rows(rows: torch.Tensor, found) -> bool:
    """Equal ids have equal rows; and no two groups do, which needs one look at the first rows alone."""
    firsts = rows[found.first_row]
    pieces = all(torch.equal(firsts[ids], part) for ids, part in zip(found.ids.split(100_000), rows.split(100_000)))
    return pieces and (len(firsts) > 100_000 or len({bytes(row) for row in firsts.cpu().numpy()}) == len(firsts))


@pytest.mark.parametrize("form", ["list of str", "rows of a buffer"])
def test_what_an_enemy_can_do(benchmark, report_ratio, request, form):
    """The time of states that are hard to group over the time of uniform ones of the same size."""
    size = Size(300 if request.config.getoption("shapes") == "tiny" else 100_000, 64)

    def of(rows):
        return peers.texts(rows) if form == "list of str" else torch.from_numpy(rows)

    kinds = {name: of(draw_rows(size, name)) for name in peers.DISTRIBUTIONS}
    attack = peers.crafted(size)
    kinds["crafted"] = [bytes(row) for row in attack] if form == "list of str" else torch.from_numpy(attack)

    def run(name):
        if name != "crafted":
            return seconds_of(lambda: anchor.group_states(kinds[name]))
        with peers.known_seed():
            return seconds_of(lambda: anchor.group_states(kinds[name]))

    times = {name: [run(name)] for name in kinds}
    for _ in range(9):
        for name in kinds:
            times[name].append(run(name))
    best = {name: min(seconds) for name, seconds in times.items()}
    benchmark.group = f"{form}, {size}, distributions"
    benchmark.pedantic(anchor.group_states, args=(kinds["uniform"],), rounds=3)
    for name, seconds in best.items():
        report_ratio(
            f"{form}, {size}, {name}: {seconds / size.states * 1e9:6.0f} ns a state, {seconds / best['uniform']:5.2f} x as long as uniform"
        )


@pytest.mark.parametrize("size", [Size(100_000, 200), Size(20_000, 2048)], ids=str)
def test_one_core_against_its_memory(benchmark, report_ratio, sized, device, size):
    """Every byte is read once and compared with its group's first state; the limit is to read as many, in order and without a hash."""
    if device.type != "cpu":
        pytest.skip("the limit of a GPU is its copy bandwidth: test_share_of_the_copy_bandwidth")
    size = sized(size)
    states, threads = torch.from_numpy(draw_rows(size)), torch.get_num_threads()
    once = states.view(torch.int64)
    try:
        torch.set_num_threads(1)
        benchmark.group = f"one core, rows of a buffer, {size}"
        ratio = paired(benchmark, lambda: (once.sum(), once.sum()), lambda: anchor.group_states(states), rounds=9)
    finally:
        torch.set_num_threads(threads)
    report_ratio(f"{benchmark.group}, {told(benchmark.extra_info['ours_median_seconds'], size)}: {ratio:7.2f} x two sums over the bytes")


@pytest.mark.parametrize("size", [Size(1_000_000, 200), Size(200_000, 2048)], ids=str)
def test_share_of_the_copy_bandwidth(benchmark, report_ratio, sized, device, size):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device: --shapes gpu")
    states = torch.from_numpy(draw_rows(size)).to(device)
    copy = torch.empty_like(states)

    def finished(run):
        run()
        torch.cuda.synchronize()

    benchmark.group = f"on the device, {size}"
    ratio = paired(
        benchmark, lambda: finished(lambda: copy.copy_(states)), lambda: finished(lambda: anchor.group_states(states)), rounds=20
    )
    report_ratio(f"{benchmark.group}, {told(benchmark.extra_info['ours_median_seconds'], size)}: {ratio:7.2f} x a copy of the states")


@pytest.mark.parametrize("distribution", ["uniform", "different"])
@pytest.mark.parametrize("size", [Size(1_000_001, 200), LARGE[2]], ids=str)
def test_memory(benchmark, report_ratio, sized, device, size, distribution):
    """Bytes a state beside the input, with the result."""
    size = sized(size)
    states = torch.from_numpy(draw_rows(size, distribution)).to(device)
    anchor.group_states(states[:1000])
    used = peak_bytes(lambda: anchor.group_states(states), device)
    benchmark.pedantic(anchor.group_states, args=(states,), rounds=1)
    report_ratio(
        f"memory, rows of a buffer, {size}, {distribution}: {'unknown' if used is None else round(used / size.states, 1)} B a state"
    )
