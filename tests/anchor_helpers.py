"""What the anchor tests share: every path that this machine can run, the kernels of the GPU run on the CPU, and comparisons."""

import ctypes
import pathlib
import shutil
import subprocess

import pytest
import torch

from gigpo_fast import anchor, backend
from gigpo_fast.anchor import cuda, rows, sorting
from gigpo_fast.anchor.hash_key import HashKey
from gigpo_fast.reference import anchor as reference
from gigpo_fast.types import StateGroups

KEY = HashKey(seed=11, sip_low=22, sip_high=-33)
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
    """The implementations that group packed rows, each as f(rows, labels), with hashes of `bits` bits and a fixed key."""
    key = KEY._replace(bits=bits)
    paths = {"sorting": lambda rows, labels: sorting.group_by_sorting(rows, labels, hashes=[sorting.fingerprints(rows, key)])}
    if backend.why_not_native(CPU) is None:
        from gigpo_fast.anchor import native

        paths["native"] = lambda rows, labels: native.group(rows, labels, bytes_decide=True, key=key)
    if kernels is not None:
        paths["kernels on a CPU"] = lambda rows, labels: run_kernels(kernels, rows, labels, bits)
    return paths


def compile_cpp(folder: pathlib.Path, name: str, *options: str) -> pathlib.Path:
    """tests/`name`.cpp, which takes in sources of csrc, compiled with warnings as errors; skips where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: apt-get install g++")
    source, built = ROOT / "tests" / f"{name}.cpp", folder / name
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT / 'csrc'}", *options, source, "-o", built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


PORTABLE = "-U__SSE2__"  # what a processor without SSE2 compiles


def build_kernels(folder: pathlib.Path, *options: str) -> ctypes.CDLL:
    """csrc/anchor_cuda.cu and the headers compiled as C++ (tests/anchor_shim.h)."""
    return ctypes.CDLL(str(compile_cpp(folder, "anchor_cuda_on_cpu", "-O1", "-fPIC", "-shared", *options)))


def launch(library: ctypes.CDLL, kernel: int, tensors: list, *, blocks: int, threads: int = 64) -> None:
    """Run one kernel (a place in cuda.KERNELS), in blocks of fewer threads than on a device, to make tests quick."""
    places = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
    library.launch_kernel(kernel, places, blocks, threads)


def kernels_of(library: ctypes.CDLL) -> cuda.Kernels:
    """The kernels as cuda.group_with wants them."""

    def on_a_cpu(kernel: int):
        def run(grid, block, args):
            assert block == (cuda.THREADS, 1, 1) and grid[1:] == (1, 1)
            launch(library, kernel, args, blocks=grid[0])

        return run

    return cuda.from_functions(*map(on_a_cpu, range(len(cuda.KERNELS))))


def run_kernels(library: ctypes.CDLL, given: rows.Packed, labels, bits: int, *, bytes_decide: bool = True, blocks: int = 3) -> StateGroups:
    """The CUDA path with the kernels run by the CPU."""
    return cuda.group_with(kernels_of(library), given, labels, bytes_decide=bytes_decide, key=KEY._replace(bits=bits), blocks=blocks)
