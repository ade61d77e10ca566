"""`make bench-gpu` without a GPU: its steps and their order, what it refuses, and that its kernel script launches every kernel."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from bench import gpu, kernels, launches, records
from gigpo_fast import backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
MACHINE = records.Machine("2026-01-02 03:04", "abc1234", "a GPU", 2, "2.13.0", "none", "0.8")


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The steps that are run instead of being run; every one is ok."""
    seen = []
    monkeypatch.setattr(gpu, "execute", lambda step, limit, out: seen.append((step, limit)) or "ok")
    monkeypatch.setattr(gpu, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")
    return seen


def test_bench_gpu_refuses_without_a_gpu(tmp_path, monkeypatch, capfd):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(gpu, "RECORDS", tmp_path)
    assert gpu.main(["--out", str(tmp_path)]) == gpu.main(["--check"]) == 2
    out = "".join(capfd.readouterr())
    assert out.count("bench-gpu needs a CUDA device") == 2 and out.count("not run: machine found something wrong") == 8 + 2


def test_bench_gpu_steps(executed, tmp_path):
    assert gpu.main([]) == 0
    tests = [f"tests-{name}" for name in gpu.TESTS]
    names = ["machine", "doctor", *tests, "repeats", "memcheck", "racecheck", "timings", "plots"]
    assert [step.name for step, _ in executed] == names, "correctness first, and no limit but the hours"
    assert all(limit == gpu.HOURS for _, limit in executed)
    assert (tmp_path / "logs" / "verdict.md").exists() and (tmp_path / "records" / gpu.CHECKS).exists()
    executed.clear()
    assert gpu.main(["--steps", "plots,timings", "--", "-k", "eager"]) == 0
    assert [step.name for step, _ in executed] == ["timings", "plots"]
    timings, plots = (step.command for step, _ in executed)
    assert timings[-2:] == ("-k", "eager") and "-k" not in plots and str(tmp_path / "records" / "gpu.csv") in timings
    executed.clear()
    assert gpu.main(["--day", "--minutes", "9", "--out", str(tmp_path / "day")]) == 0
    assert [step.name for step, _ in executed] == ["machine", "doctor", *tests, "shapes", "repeats", "memcheck", "racecheck"]
    assert all(limit <= 150 for _, limit in executed) and [step.name for step, _ in executed if step.ends] == ["machine"]
    assert [step.name for step, _ in executed if step.command[-2:] == ("--dtypes", "float32,bfloat16")] == ["memcheck", "racecheck"]
    assert sorted(path.name for path in (tmp_path / "day").iterdir()) == [gpu.CHECKS, "verdict.md"]
    with pytest.raises(SystemExit):
        gpu.main(["--steps", "speed"])


@pytest.mark.parametrize("bad, others", [("doctor", []), ("repeats", ["memcheck", "timings"]), ("timings", ["plots"])])
def test_only_a_selftest_that_is_wrong_ends_bench_gpu(bad, others, executed, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "execute", lambda step, limit, out: executed.append(step.name) or ("wrong" if step.name == bad else "ok"))
    assert gpu.main([]) == 1
    assert set(others) <= set(executed) and (bad != "doctor" or executed == ["machine", "doctor"])
    assert ("not run: doctor found something wrong" in capsys.readouterr().out) == (bad == "doctor")


def test_bench_gpu_logs_every_step(tmp_path):
    path = tmp_path / "checks.csv"
    for result in ("ok", "wrong"):
        gpu._log(gpu.Outcome("doctor", result, 2.6), MACHINE._asdict(), path)
    lines = path.read_text().splitlines()
    assert lines[0] == "date,commit,device,torch,triton,step,result,seconds"
    assert lines[1:] == [f"2026-01-02 03:04,abc1234,a GPU,2.13.0,none,doctor,{result},3" for result in ("ok", "wrong")]


def test_kernels_that_differ_between_runs_are_reported(monkeypatch, capsys):
    found = iter([1.0, 1.0, 2.0, math.inf, math.inf, math.inf])
    draw = lambda: {"loss": torch.tensor(next(found))}  # noqa: E731
    monkeypatch.setattr(kernels, "cases", lambda device, kinds: iter([("a", draw), ("b", draw)]))
    assert kernels.main(["--device", "cpu", "--repeats", "3"]) == 1
    out = capsys.readouterr().out
    assert "a: loss differs between two of 3 runs" in out and "b: loss is not finite" in out


def test_a_kernel_case_that_raises_is_reported_with_its_kernels_and_the_next_one_runs(monkeypatch, tmp_path):
    def raises():
        launches.watched().note("rows_forward_kernel")
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(kernels, "cases", lambda device, kinds: iter([("a", raises), ("b", lambda: {"loss": torch.zeros(())})]))
    assert kernels.main(["--device", "cpu", "--report", str(tmp_path / "k.jsonl")]) == 1
    lines = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert [(line["name"], line["result"], line["kernels"]) for line in lines] == [
        ("a", "begun", ["rows_forward_kernel"]),
        ("a", "failed", ["rows_forward_kernel"]),
        ("b", "passed", []),
    ]
    assert lines[1]["note"] == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_the_kernel_script_repeats_on_this_machine(capsys):
    assert kernels.main(["--device", "cpu", "--repeats", "2"]) == 0
    assert "every run gave the same bits" in capsys.readouterr().out


def test_the_kernel_script_launches_every_triton_kernel():
    if backend.why_not_triton(CPU) is not None and "not installed" in backend.why_not_triton(CPU):
        pytest.skip("triton is not installed")
    jitted = {name for name in launches.names() if name.endswith("_kernel")}
    code = """
import torch
from bench import kernels, launches

launched = launches.watched()
for name, function in kernels.cases(torch.device("cpu")):
    if "16" not in name and "64" not in name:  # one dtype is enough to see what is launched
        function()
print(" ".join(sorted(launched)))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GIGPO_FAST_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(jitted) >= 3 and set(ran.stdout.split()) == jitted


def test_the_kernel_script_runs_the_dtypes_asked_for(capsys):
    assert kernels.main(["--device", "cpu", "--dtypes", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "rows, bfloat16" in out and "float32" not in out and "anchor ids of bytes" in out
    with pytest.raises(SystemExit):
        kernels.main(["--device", "cpu", "--dtypes", "int8"])


def test_gpu_shapes_stop_without_a_gpu(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "pytest", "bench/test_token_log_probs.py", "-q", "--shapes", "gpu", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "the gpu shapes need a CUDA device" in ran.stdout + ran.stderr
