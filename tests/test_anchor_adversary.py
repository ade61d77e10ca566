"""States made to collide: the ids stay right, the work stays bounded, and what was set aside is sorted by a hash that nobody can foresee."""

import ctypes
import random

import pytest
import torch

from gigpo_fast import anchor
from gigpo_fast.anchor import cuda, rows, sorting
from gigpo_fast.anchor.hash_key import HashKey, hash_key
from gigpo_fast.reference import anchor as reference
from tests.anchor_crafted import crafted_for_tables, crafted_states
from tests.anchor_helpers import assert_groups, build_kernels, check_states, every_packed_path, kernels_of, native_or_skip, packed
from tests.test_anchor_hash import on_host, short_hash_of

SEED = 11  # of the key that every_packed_path uses


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def known_seed(monkeypatch):
    monkeypatch.setenv("GIGPO_FAST_HASH_SEED", str(SEED))
    hash_key.cache_clear()
    yield
    monkeypatch.undo()
    hash_key.cache_clear()


def attack(different: int, count: int) -> list[bytes]:
    """States that collide in the fingerprint, and as many that collide in a host's tables."""
    states = crafted_states(SEED, different) + crafted_for_tables(SEED, different)
    return [random.Random(count).choice(states) for _ in range(count)]


def test_the_states_do_collide(kernels):
    states = crafted_states(SEED, 50)
    assert len(set(states)) == 50
    assert len(set(on_host(kernels, states, SEED))) == 1
    assert len(set(on_host(kernels, states, SEED + 1))) == 50  # of no use against a seed that is not known
    states = crafted_for_tables(SEED, 50)
    assert len(set(states)) == 50
    assert len({short_hash_of(kernels, state, SEED) for state in states}) == 1
    assert len({short_hash_of(kernels, state, SEED + 1) for state in states}) == 50


@pytest.mark.parametrize("path", ["sorting", "native", "kernels on a CPU"])
@pytest.mark.parametrize("different", [1, 4, 5, 6, 300])
def test_crafted_collisions_on_every_path(kernels, path, different):
    paths = every_packed_path(128, kernels)
    if path not in paths:
        native_or_skip()
    honest = [f"{number % 40}".encode() * 9 for number in range(120)]
    states = [state for pair in zip(attack(different, 600), honest * 5) for state in pair]
    group = [number % 3 for number in range(len(states))]
    for labels in (None, group):
        found = paths[path](packed(states, gap=3), None if labels is None else torch.tensor(labels))
        assert_groups(found, reference.group_states(states, labels))


def test_crafted_collisions_in_a_list(known_seed):
    states = attack(2000, 5000)
    check_states(states)
    check_states(states + [state.decode("latin-1") for state in states])


def test_crafted_collisions_shared_by_threads(known_seed):
    native_or_skip()
    states = attack(5000, 300_000)  # enough for threads to share
    words = torch.frombuffer(bytearray(b"".join(states)), dtype=torch.uint8).reshape(-1, 64)
    number: dict[bytes, int] = {}
    expected = torch.tensor([number.setdefault(state, len(number)) for state in states])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(anchor.group_states(words).ids, expected)
    finally:
        torch.set_num_threads(threads)


def test_kernels_set_aside_whole_states_and_honest_ones_never(kernels):
    run, asked = kernels_of(kernels), []
    watched = cuda.Kernels(run.enter, lambda *arguments: (asked.append(int((arguments[4] < 0).sum())), run.rehash(*arguments)))
    key = HashKey(SEED, 2, 3)

    def group(states):
        return cuda.group_with(watched, packed(states), None, bytes_decide=True, key=key, blocks=3)

    honest = [f"{number:08}".encode() for number in range(2000)]
    assert_groups(group(honest * 2), reference.group_states(honest * 2))
    assert asked == []
    assert_groups(group(crafted_states(SEED, 100) * 3), reference.group_states(crafted_states(SEED, 100) * 3))
    assert asked == [3 * 98]  # the table takes two states of one fingerprint


@pytest.mark.parametrize("kind", ["uniform", "Zipf", "all equal", "all different", "crafted"])
def test_work_a_state_is_bounded(kernels, kind):
    """Counted, not timed: no distribution of states, and no enemy, gets more than three comparisons or lines of a table a row."""
    draw, count = random.Random(0), 20_000
    number = {
        "uniform": lambda row: draw.randrange(count // 10),
        "Zipf": lambda row: int(1 / (1 - draw.random())),
        "all equal": lambda row: 0,
        "all different": lambda row: row,
        "crafted": lambda row: draw.randrange(count // 10),
    }[kind]
    crafted = crafted_for_tables(SEED, count // 10) if kind == "crafted" else None
    states = [crafted[number(row)] if crafted else number(row).to_bytes(64, "little") for row in range(count)]
    found = (ctypes.c_long * 2)()
    kernels.count_work(b"".join(states), ctypes.c_int64(count), ctypes.c_int64(64), ctypes.c_uint64(SEED), found)
    comparisons, lines = (total / count for total in found)
    assert 2 < comparisons <= 5 if kind == "crafted" else comparisons <= 1.1, comparisons
    assert lines <= 3, lines
    assert kind == "all different" or comparisons > 0.5


def test_labels_tell_states_apart_among_those_set_aside(kernels):
    states, labels = crafted_states(SEED, 40) * 4, [number // 40 % 2 for number in range(160)]
    for run in every_packed_path(128, kernels).values():
        assert_groups(run(packed(states), torch.tensor(labels)), reference.group_states(states, labels))


def test_sorting_uses_the_words_where_hashes_do_not_help():
    states = [bytes([number % 7]) * (9 + number % 2) for number in range(60)]
    given = packed(states)
    found = sorting.group_by_sorting(given, None, hashes=[torch.zeros(60, dtype=torch.int64)] * 2)
    assert_groups(found, reference.group_states(states))


@pytest.mark.parametrize("bits", [128, 4])
def test_fixed_width_and_ranges_are_the_same(bits):
    native_or_skip()
    from gigpo_fast.anchor import native

    states = torch.randint(0, 2, (500, 5), dtype=torch.uint8)
    fixed, key = rows.FixedWidth(states.reshape(-1), 500, 5), HashKey(1, 2, 3, bits)
    expected = reference.group_states(list(states))
    for form in (fixed, fixed.packed()):
        assert_groups(native.group(form, None, bytes_decide=True, key=key), expected)


def test_a_process_draws_its_key(monkeypatch):
    monkeypatch.delenv("GIGPO_FAST_HASH_SEED", raising=False)
    hash_key.cache_clear()
    first = hash_key()
    hash_key.cache_clear()
    assert hash_key() != first and len({*first, *hash_key()}) == 7  # six random numbers, and the number of bits
    hash_key.cache_clear()


def test_the_key_can_be_fixed_to_repeat_a_timing(known_seed):
    first = hash_key()
    hash_key.cache_clear()
    assert hash_key() == first and first.seed == SEED and first.sip_low not in (0, SEED)
