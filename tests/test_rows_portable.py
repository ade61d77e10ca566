"""The C++ rows under the sanitizers of the compiler at hand, and on aarch64 (cross-compiled, run by qemu), against the float64 formulas."""

import os
import pathlib
import shutil
import struct
import subprocess

import pytest
import torch

from tests.test_rows_native import assert_right, case, formula

HERE = pathlib.Path(__file__).parent
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
VOCABULARY = 2100  # more than a block, and no multiple of anything


def missing(*programs):
    return [program for program in programs if shutil.which(program) is None]


@pytest.fixture(scope="module", params=["sanitizers", "aarch64"])
def program(request, tmp_path_factory):
    """The command that runs the rows, or a skip that says what to install."""
    compiler = os.environ.get("CXX", "c++") if request.param == "sanitizers" else CROSS
    lacking = missing(compiler) if request.param == "sanitizers" else missing(CROSS, QEMU)
    if lacking:
        pytest.skip(f"needs {' and '.join(lacking)}: apt-get install g++ g++-aarch64-linux-gnu qemu-user")
    flags = (
        ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if request.param == "sanitizers" else ["-O3", "-static"]
    )
    binary = tmp_path_factory.mktemp("rows") / "rows"
    built = subprocess.run([compiler, "-std=c++17", *flags, HERE / "rows_on_any_cpu.cpp", "-o", binary], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return [binary] if request.param == "sanitizers" else [QEMU, binary]


def raw(value):
    return value.contiguous().view(torch.uint8).numpy().tobytes()


def run(program, isa, logits, stride, ids, scale, tanh_in, c, e):
    """((n, 5) results, gradient) of one call; None if the processor lacks that instruction set."""
    n, vocabulary = logits.shape
    memory = torch.full((n, stride), torch.nan, dtype=logits.dtype)
    memory[:, :vocabulary] = logits
    memory = memory.flatten()[: (n - 1) * stride + vocabulary]
    sent = struct.pack("5qd", ELEMENTS[logits.dtype], n, vocabulary, stride, isa, tanh_in) + raw(memory) + raw(ids)
    ran = subprocess.run(program, input=sent + b"".join(raw(value.double()) for value in (scale, c, e)), capture_output=True)
    if ran.returncode == 4:
        return None
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    results = torch.frombuffer(bytearray(ran.stdout[: n * 40]), dtype=torch.float64).view(n, 5)
    after = torch.frombuffer(bytearray(ran.stdout[n * 40 :]), dtype=logits.dtype)
    rows = [after[i * stride : i * stride + vocabulary] for i in range(n)]
    gaps = [after[i * stride + vocabulary : (i + 1) * stride] for i in range(n - 1)]
    assert all(gap.isnan().all() for gap in gaps), "memory between the rows was written"
    return results, torch.stack(rows)


@pytest.mark.parametrize("tanh_in", [0.0, 0.2])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_against_float64(dtype, tanh_in, program):
    """At every instruction set that the processor has."""
    logits, ids, scale, c, e = case(4, VOCABULARY, dtype)
    ids[0], c[3], e[3] = VOCABULARY - 1, 0, 0
    runs = [run(program, isa, logits, VOCABULARY + 3, ids, scale, tanh_in, c, e) for isa in range(3)]
    exact, plain = formula(logits, ids, scale, tanh_in, c, e), formula(logits, ids, scale, tanh_in, c, e, scale.dtype)
    truths, torchs = ([log_probs, *lse.unbind(1), *rest] for log_probs, lse, *rest in (exact, plain))
    assert runs[0] is not None, "every processor has the baseline"
    for results, gradient in filter(None, runs):
        log_probs, largest, log_sum, entropy, squared = results.unbind(1)
        names = ("log_probs", "largest", "log_sum", "entropy", "gradient", "squared")
        for name, mine, truth, own in zip(names, (log_probs, largest, log_sum, entropy, gradient, squared), truths, torchs, strict=True):
            if dtype == torch.float64:
                torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-13)
            else:
                assert_right(name, mine, own.to(mine.dtype), truth, 3 if name == "gradient" else 2)
        assert torch.count_nonzero(gradient[3]) == 0
