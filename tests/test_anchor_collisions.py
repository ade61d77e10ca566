"""Byte strings that are hard to tell apart, on every implementation, with fingerprints cut to 4 bits: bytes must decide, always.

The implementations are the C++ path, the sorting that other devices fall back to, and the CUDA kernels, run by the CPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gigpo_fast import anchor, backend
from gigpo_fast.reference import anchor as reference
from tests.anchor_helpers import KEY, assert_groups, build_kernels, check_states, every_packed_path, native_or_skip, packed, run_kernels

BITS = [128, 64, 4]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build_kernels(tmp_path_factory.mktemp("kernels"))


def check(states, kernels, bits, group=None, gap=0):
    expected = reference.group_states(states, group)
    rows, labels = packed(states, gap), None if group is None else torch.tensor(group, dtype=torch.int64)
    for name, run in every_packed_path(bits, kernels).items():
        try:
            assert_groups(run(rows, labels), expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def ramp(length: int, start: int = 0) -> bytes:
    return bytes((start + 7 * i) % 251 for i in range(length))


@pytest.mark.parametrize("bits", BITS)
def test_prefixes_of_every_length_differ(kernels, bits):
    lengths = [*range(258), 511, 512, 513, 1023, 1024, 1025, 1087, 1088, 1089, 4095, 4096, 4097, 8191, 8192, 8193, 9300]
    check([ramp(length) for length in lengths] * 2, kernels, bits)


@pytest.mark.parametrize("bits", BITS)
def test_trailing_zeros_differ(kernels, bits):
    check([b"state" + bytes(count) for count in range(40)] + [bytes(count) for count in range(40)], kernels, bits)


@pytest.mark.parametrize("bits", [*BITS, 0])
@pytest.mark.parametrize("length", [1, 3, 4, 8, 9, 16, 17, 64, 128, 129, 240, 241, 1024, 1025, 4097, 8193, 20_001])
def test_one_bit_differs(kernels, bits, length):
    base = ramp(length)
    places = sorted({0, 1, length // 2, length - 2, length - 1} & set(range(length)))
    flipped = [base[:at] + bytes([base[at] ^ 1 << bit]) + base[at + 1 :] for at in places for bit in (0, 7)]
    check([base, *flipped, base, *reversed(flipped)], kernels, bits)


@pytest.mark.parametrize("bits", BITS)
def test_more_collisions_than_a_probe_sequence(kernels, bits):
    check([f"{number}".encode() for number in range(300)] * 2, kernels, bits)


@pytest.mark.parametrize("bits", [0, 1])
def test_no_hash_is_reserved(kernels, bits):
    """With one bit, or none, every hash is 0 or 1: what marks a free slot or a missing row must not be among them."""
    check([b"", b"\0", b"a", b"", b"\0\0", b"a", b"b"] * 3, kernels, bits)
    check([b"same"] * 9, kernels, bits)


@pytest.mark.parametrize("bits", BITS)
def test_one_state_in_many_groups(kernels, bits):
    check([b"same"] * 300, kernels, bits, group=[(number * 2**55) % 2**62 - 2**61 for number in range(150)] * 2)


@pytest.mark.parametrize("gap", range(16))
def test_alignment_does_not_matter(kernels, gap):
    states = [ramp(length, start) for length in (0, 3, 7, 8, 16, 33, 240, 241, 500, 1100, 8300) for start in (0, 1)] * 2
    check(states, kernels, 128, gap=gap)


def test_overlapping_rows(kernels):
    data = torch.frombuffer(bytearray(b"abcabcabc"), dtype=torch.uint8)
    rows = packed([b""] * 4)._replace(data=data, starts=torch.tensor([0, 3, 1, 6]), lengths=torch.tensor([3, 3, 3, 3]))
    for run in every_packed_path(128, kernels).values():
        assert run(rows, None).ids.tolist() == [0, 0, 1, 0]


@settings(max_examples=25)
@given(data=st.data(), bits=st.sampled_from(BITS), gap=st.integers(0, 15))
def test_any_bytes_in_any_group(kernels, data, bits, gap):
    drawn = data.draw(
        st.lists(st.tuples(st.one_of(st.binary(max_size=3), st.binary(max_size=40)), st.integers(-2, 2)), min_size=1, max_size=40)
    )
    states, group = map(list, zip(*drawn))
    check(states, kernels, bits, group=group, gap=gap)


@pytest.mark.parametrize(
    "states", [list("abracadabra") * 40, [b"\x00" * count for count in range(400)], ["\ud800", "\udfff", "a"] * 3, [1, 2.0, None, True] * 9]
)
def test_lists_with_short_fingerprints(states):
    check_states(states, _debug_hash_bits=4)
    check_states(states, [number % 3 for number in range(len(states))], _debug_hash_bits=4)


def test_many_distinct_strings_with_short_fingerprints():
    check_states([f"room {number % 700}" for number in range(1500)], _debug_hash_bits=4)


def test_a_cut_fingerprint_alone_does_merge(kernels):
    """That the 4-bit tests test something: without the bytes, 4 bits do confuse states."""
    states = [f"{number:03}".encode() for number in range(100)]
    assert run_kernels(kernels, packed(states), None, 4, bytes_decide=False).counts.numel() <= 16
    native_or_skip()
    with backend.use("native"):
        assert anchor.group_states(states, verify="fingerprint", _debug_hash_bits=4).counts.numel() <= 16


def test_rows_outside_the_buffer_are_refused():
    native_or_skip()
    anchor.group_states(["a"])
    data, group_packed = torch.zeros(3, dtype=torch.uint8), torch.ops.gigpo_fast_C.group_packed
    for start, length in ((0, 4), (4, 0), (-1, 1), (1, 2**62), (0, -1)):
        with pytest.raises(RuntimeError, match="a row lies outside of data"):
            group_packed(data, 1, 0, torch.tensor([start]), torch.tensor([length]), None, *KEY, True)
    for count, width in ((4, 1), (2, 2), (2**62, 3), (1, 2**62)):
        with pytest.raises(RuntimeError, match="a row lies outside of data"):
            group_packed(data, count, width, None, None, None, *KEY, True)


def test_a_list_of_other_types_is_left_to_the_encoder():
    native_or_skip()
    from gigpo_fast.anchor import native

    for items in ([1], ["a", 1], ["a", None, "b"], [b"x", bytearray(b"y")]):
        assert native.group_list(items, None, bytes_decide=True, key=KEY) is None
