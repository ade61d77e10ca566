"""What the anchor tests share: every path that this machine can run, the kernels of the GPU run on the CPU, and comparisons."""

import ctypes
import pathlib
import shutil
import subprocess

import pytest
import torch

from gigpo_fast import anchor, backend
from gigpo_fast.anchor import cuda, rows, sorting
from gigpo_fast.reference import anchor as reference
from gigpo_fast.types import StateGroups

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def native_or_skip():
    reason = backend.why_not_native(CPU)
    if reason is not None:
        pytest.skip(f"C++ path: {reason}")


def on_every_path(check):
    """Run `check` on the torch path, and on the C++ path where it was built."""
    with backend.use("torch"):
        check()
    if backend.why_not_native(CPU) is None:
        with backend.use("native"):
            check()


def assert_groups(found: StateGroups, expected) -> None:
    for name, got, want in zip(StateGroups._fields, found, expected):
        assert got.dtype == torch.int64, name
        assert got.tolist() == want.tolist(), name


def check_states(states, group=None, valid=None, *, as_reference=None, **options):
    """Compare every path with the reference; `as_reference` is the list of states where `states` is a buffer."""
    expected = reference.group_states(states if as_reference is None else as_reference, group, valid)
    on_every_path(lambda: assert_groups(anchor.group_states(states, group, valid=valid, **options), expected))


def packed(states: list[bytes], gap: int = 0) -> rows.Packed:
    """Byte strings in one buffer, `gap` bytes of rubbish before each."""
    lengths = torch.tensor([len(state) for state in states], dtype=torch.int64)
    data = torch.frombuffer(bytearray(b"".join(b"\xa5" * gap + state for state in states) + b"\x5a"), dtype=torch.uint8)[:-1]
    return rows.Packed(data, (lengths + gap).cumsum(0) - lengths, lengths)


def every_packed_path(bits: int, kernels=None) -> dict:
    """The implementations that group packed rows, each as f(rows, labels), with fingerprints of `bits` bits and a fixed seed."""
    paths = {"sorting": lambda rows, labels: sorting.group_by_sorting(rows, labels, seed=11, hash_bits=bits)}
    if backend.why_not_native(CPU) is None:
        from gigpo_fast.anchor import native

        paths["native"] = lambda rows, labels: native.group(rows, labels, bytes_decide=True, seed=11, hash_bits=bits)
    if kernels is not None:
        paths["kernels on a CPU"] = lambda rows, labels: run_kernels(kernels, rows, labels, bits)
    return paths


def build_kernels(folder: pathlib.Path) -> ctypes.CDLL:
    """csrc/anchor_cuda.cu and the header compiled as C++ (tests/anchor_cuda_on_cpu.cpp)."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: apt-get install g++")
    library = folder / "anchor_cuda_on_cpu.so"
    source = ROOT / "tests" / "anchor_cuda_on_cpu.cpp"
    command = [
        compiler,
        "-O1",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-pthread",
        f"-I{ROOT / 'csrc'}",
        source,
        "-o",
        library,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(library))


def run_kernels(library: ctypes.CDLL, given: rows.Packed, labels, bits: int, *, bytes_decide: bool = True) -> StateGroups:
    """What gigpo_fast.anchor.cuda.group and its caller do, with the kernels run by the CPU."""
    labels = torch.zeros_like(given.starts) if labels is None else labels
    _, first_row, slots, gave_up = launch(library, given, labels, bits, seed=11, bytes_decide=bytes_decide)
    found = cuda.number_slots(first_row, slots, gave_up)
    return sorting.group_by_sorting(given, labels, seed=11, hash_bits=bits) if found is None else found


def launch(
    library: ctypes.CDLL, given: rows.Packed, labels: torch.Tensor, bits: int, *, seed: int, bytes_decide: bool = True, blocks: int = 4
):
    """Both kernels on the CPU: (fingerprints (S, 2), first_row of each slot, slot of each row, gave_up)."""
    total = given.starts.numel()
    capacity = max(cuda.FEWEST_SLOTS, 1 << (2 * total - 1).bit_length())
    settings = torch.tensor([total, seed, bits, capacity, int(bytes_decide)])
    fingerprints = torch.empty(total, 2, dtype=torch.int64)
    table = torch.zeros(capacity, dtype=torch.int64)
    first_row = torch.full((capacity,), torch.iinfo(torch.int64).max)
    slots, gave_up = torch.empty(total, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    tensors = (settings, given.data, given.starts, given.lengths, labels, fingerprints, table, first_row, slots, gave_up)
    library.run_kernels(*[ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors], blocks)
    return fingerprints, first_row, slots, gave_up
