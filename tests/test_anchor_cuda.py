"""The CUDA grouping kernels compile for every architecture, ahead of time and at run time, without a GPU."""

import pathlib
import re
import shutil
import subprocess

import pytest
import torch

from gigpo_fast import anchor
from gigpo_fast.anchor import cuda
from tests.anchor_helpers import KEY, ROOT, assert_groups, packed

ARCHITECTURES = ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"]
SOURCE = ROOT / "csrc" / "anchor_cuda.cu"
REGISTERS = 64  # 32 warps of 256-thread blocks fit a multiprocessor


def _nvcc() -> str:
    return shutil.which("nvcc") or pytest.skip("nvcc is not on PATH; install the CUDA toolkit to compile csrc/anchor_cuda.cu here")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_device_code_compiles_without_warnings_or_spills(tmp_path, architecture):
    command = [
        _nvcc(),
        "-O3",
        "-std=c++17",
        f"-arch={architecture}",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
        "-DANCHOR_DEVICE_ONLY",
        "-cubin",
    ]
    done = subprocess.run([*command, SOURCE, "-o", tmp_path / "anchor.cubin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"Compiling entry function '(\w+)'", done.stderr)) == set(cuda.KERNELS)
    assert re.findall(r"(\d+) bytes (?:stack|spill)", done.stderr) == ["0"] * 3 * len(cuda.KERNELS)
    assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= REGISTERS


@pytest.mark.slow
def test_host_part_compiles_against_the_stable_abi(tmp_path):
    include = pathlib.Path(torch.__file__).parent / "include"
    command = [
        _nvcc(),
        "-O1",
        "-std=c++17",
        "-arch=sm_90",
        "-Werror",
        "all-warnings",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    done = subprocess.run(
        [*command, f"-I{include}", "-Xcompiler", "-fPIC", "-c", SOURCE, "-o", tmp_path / "a.o"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_source_is_one_text():
    assert '#include "' not in cuda.source() and "#pragma once" not in cuda.source().split("namespace anchor")[0]


def test_blocks_cover_the_rows_and_no_more_than_fill_the_device():
    assert [cuda.blocks(total, 132) for total in (1, 8, 9, 10**7)] == [1, 1, 2, 132 * 16]


def test_no_rows_launch_nothing():
    def never(*arguments):
        raise AssertionError("launched")

    found = cuda.group_with(cuda.Kernels(never, never), packed([]), None, bytes_decide=True, key=KEY, blocks=1)
    assert [part.tolist() for part in found] == [[], [], []] and found.ids.dtype == torch.int64


def test_why_not_gives_a_reason_instead_of_failing(monkeypatch):
    assert cuda.why_not(torch.device("cpu")) == "the CUDA kernels need a CUDA device"
    cuda._why_not_on.cache_clear()
    monkeypatch.setattr(cuda, "_kernels", lambda index: (_ for _ in ()).throw(RuntimeError("no such compiler\nmore")))
    assert cuda.why_not(torch.device("cuda", 0)) == "no such compiler"
    cuda._why_not_on.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    states = torch.randint(0, 9, (5000, 300), dtype=torch.uint8)[torch.randint(0, 5000, (20_000,))]
    reason = cuda.why_not(torch.device("cuda", 0))
    assert reason is None, reason
    assert_groups(anchor.group_states(states.cuda()), [part.cpu() for part in anchor.group_states(states)])
    rows = packed([bytes(range(length)) for length in range(200)] * 3)
    found = cuda.group(type(rows)(*[part.cuda() for part in rows]), None, bytes_decide=True, key=KEY._replace(bits=16))
    assert found.ids.tolist() == list(range(200)) * 3
