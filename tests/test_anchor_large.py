"""Sizes past 32 bits, tables that grow, and what memory a state costs."""

import ctypes
import mmap
import pathlib
import re
import sys

import pytest
import torch

from gigpo_fast import anchor, backend
from gigpo_fast.anchor import encoding, native, rows
from tests.anchor_helpers import KEY, build_kernels, native_or_skip

# xxhash 4.1.0, fed piece by piece: xxhash.xxh3_128(seed=3) over 2**32 + 123 zero bytes
GOLD_LENGTH, GOLD = (1 << 32) + 123, 0x4AD51ADAF20A3D780474CF9DF40E0CC5


def zeros(count: int) -> torch.Tensor:
    """Bytes that take no memory as long as they are only read."""
    return torch.frombuffer(mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


linux = pytest.mark.skipif(sys.platform != "linux", reason="maps memory, and asks how much is in use, as Linux does it")


@linux
def test_a_state_of_more_than_4_gibibytes_hashes_as_its_pieces_do(tmp_path):
    library, out, data = build_kernels(tmp_path), (ctypes.c_uint64 * 2)(), zeros(GOLD_LENGTH)
    library.host_fingerprint(ctypes.c_void_p(data.data_ptr()), ctypes.c_int64(GOLD_LENGTH), ctypes.c_uint64(3), out)
    assert out[0] | out[1] << 64 == GOLD


@linux
def test_states_past_2_to_the_31_and_32():
    native_or_skip()
    width, data = 2**31 + 5, zeros(2**32 + 11)
    data[-1] = 1
    starts = torch.tensor([0, 1, 2**31 + 6, 2**32 + 3, 2**32 + 3])
    lengths = torch.tensor([width, width, width, 8, 7])
    found = native.group(rows.Packed(data, starts, lengths), None, bytes_decide=True, key=KEY)
    assert found.ids.tolist() == [0, 0, 1, 2, 3]  # the third ends in the 1, and so does the fourth
    fixed = native.group(rows.FixedWidth(data[: 2 * 2**31], 2, 2**31), None, bytes_decide=True, key=KEY)
    assert fixed.ids.tolist() == [0, 0]


@linux
@pytest.mark.parametrize("path", ["native", pytest.param("torch", marks=pytest.mark.slow)])
def test_offsets_past_2_to_the_32(path):
    if path == "native":
        native_or_skip()
    elif available_bytes() < 14 << 30:
        pytest.skip("needs 14 GiB of free memory: bytes are copied, then cut into states")
    values = zeros(2**32 + 3)
    values[-1] = 1
    offsets = torch.tensor([0, 2**32 + 1, 2**32 + 2, 2**32 + 3])
    with backend.use(path):
        assert anchor.group_states((values, offsets)).ids.tolist() == [0, 1, 2]


def available_bytes() -> int:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def test_sizes_that_a_c_int_cannot_hold_without_the_memory(monkeypatch):
    """With an int of 8 bits in place of 32: whatever copies memory by ctypes must not hand it a larger size."""
    copied = ctypes.string_at

    def string_at_of_8_bits(address, size):
        assert size <= 127, "ctypes would keep the low bits alone"
        return copied(address, size)

    monkeypatch.setattr(ctypes, "string_at", string_at_of_8_bits)
    monkeypatch.setattr(encoding, "LARGEST_C_INT", 127)
    values = torch.arange(256 + 3, dtype=torch.int16).view(torch.uint8)[: 2 * 256 + 3].clone()
    values[512:] = torch.tensor([7, 7, 8])
    offsets = torch.tensor([0, 200, 512, 513, 514, 515])
    with backend.use("torch"):
        assert anchor.group_states((values, offsets)).ids.tolist() == [0, 1, 2, 2, 3]
        tensors = [values[:200], values[:201], values[:200].clone(), values[:127], values[:128]]
        assert anchor.group_states(tensors).ids.tolist() == [0, 1, 0, 2, 3]
    assert encoding.tensor_bytes(values) == bytes(values.tolist())


def test_memory_is_copied_through_ctypes_in_one_place_only():
    """So that the size is minded in one place."""
    package = pathlib.Path(anchor.__file__).parent.parent
    pattern = re.compile(r"\b(string_at|wstring_at|memmove|memset|from_address)\b")
    found = {path.name for path in package.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {"encoding.py"}


@linux
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("different", [1.0, 0.1])
def test_bytes_a_state(different, threads):
    """Beside the states, and with the result, at most 48 bytes a state, even if all differ."""
    from bench.timing import peak_bytes

    native_or_skip()
    count, before = 1 << 21, torch.get_num_threads()
    states = (torch.randperm(count) % int(count * different)).view(-1, 1)
    anchor.group_states(states[:1000])
    try:
        torch.set_num_threads(threads)
        used = peak_bytes(lambda: anchor.group_states(states))
    finally:
        torch.set_num_threads(before)
    if used is None:
        pytest.skip("the kernel does not let a process reset its high-water mark")
    assert 8 <= used / count <= 48, used / count  # the ids alone are 8


def test_a_table_that_grows_many_times():
    states = torch.arange(300_000).repeat(2)
    found = anchor.group_states(states)
    assert torch.equal(found.ids, states) and found.counts.eq(2).all() and torch.equal(found.first_row, torch.arange(300_000))
