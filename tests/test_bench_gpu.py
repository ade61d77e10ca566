"""`make bench-gpu` without a GPU: its steps and their order, what it refuses, and that its kernel script launches every kernel."""

import ast
import math
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from bench import gpu, kernels, records
from gigpo_fast import backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
MACHINE = records.Machine("2026-01-02 03:04", "abc1234", "a GPU", 2, "2.13.0", "none", "0.8")


def test_bench_gpu_refuses_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "device_name", lambda: None)
    monkeypatch.setattr(gpu, "run", lambda *_, **__: pytest.fail("a step was run"))
    assert gpu.main([]) == gpu.main(["--check"]) == 2
    assert "bench-gpu needs a CUDA device" in capsys.readouterr().err


def test_bench_gpu_steps(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(gpu, "device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "_log", lambda outcomes, device: seen.append((outcomes, device)))
    monkeypatch.setattr(gpu, "_execute", lambda step: seen.append(step) or 0)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: None if tool == "compute-sanitizer" else tool)
    assert gpu.main([]) == 0
    *steps, (outcomes, device) = seen
    assert [step.name for step in steps] == ["doctor", "tests", "repeats", "timings", "plots"] and device == "a GPU"
    assert [o.result for o in outcomes][2:4] == ["compute-sanitizer is not installed"] * 2
    assert [outcome.step for outcome in outcomes] == [step.name for step in gpu.STEPS], "correctness first"
    seen.clear()
    assert gpu.main(["--steps", "plots,timings", "--", "-k", "eager"]) == 0
    assert [step.name for step in seen[:-1]] == ["timings", "plots"]
    assert seen[0].command[-2:] == ("-k", "eager") and "-k" not in seen[1].command
    with pytest.raises(SystemExit):
        gpu.main(["--steps", "speed"])


@pytest.mark.parametrize("bad, run", [("doctor", 1), ("repeats", 5), ("timings", 7)])
def test_bench_gpu_ends_at_what_is_wrong(bad, run, monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    outcomes = gpu.run(gpu.STEPS, execute=lambda step: int(step.name == bad))
    assert len(outcomes) == run and [o.step for o in outcomes if o.result == "wrong"] == [bad]
    if run < len(gpu.STEPS):
        assert f"{bad} found something wrong; not run: " in capsys.readouterr().err


def test_bench_gpu_logs_every_step(tmp_path):
    path = tmp_path / "records" / "checks.csv"
    for result in ("ok", "wrong"):
        gpu._log([gpu.Outcome("doctor", result, 2.6)], "a GPU", path, MACHINE)
    lines = path.read_text().splitlines()
    assert lines[0] == "date,commit,device,torch,triton,step,result,seconds"
    assert lines[1:] == [f"2026-01-02 03:04,abc1234,a GPU,2.13.0,none,doctor,{result},3" for result in ("ok", "wrong")]


def test_kernels_that_differ_between_runs_are_reported(monkeypatch, capsys):
    found = iter([1.0, 1.0, 2.0, math.inf, math.inf, math.inf])
    draw = lambda: {"loss": torch.tensor(next(found))}  # noqa: E731
    monkeypatch.setattr(kernels, "cases", lambda device: iter([("a", draw), ("b", draw)]))
    assert kernels.main(["--device", "cpu", "--repeats", "3"]) == 1
    out = capsys.readouterr().out
    assert "a: loss differs between two of 3 runs" in out and "b: loss is not finite" in out


def test_the_kernel_script_repeats_on_this_machine(capsys):
    assert kernels.main(["--device", "cpu", "--repeats", "2"]) == 0
    assert "every run gave the same bits" in capsys.readouterr().out


def test_the_kernel_script_launches_every_triton_kernel():
    if backend.why_not_triton(CPU) is not None and "not installed" in backend.why_not_triton(CPU):
        pytest.skip("triton is not installed")
    jitted = set()
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name.endswith("_kernel")
                and any("jit" in ast.dump(d) for d in node.decorator_list)
            ):
                jitted.add(node.name)
    code = """
import torch
from triton.runtime import interpreter
from bench import kernels

launched, launch = set(), interpreter.GridExecutor.__call__
def watched(self, *arguments, **keywords):
    launched.add(self.fn.__name__)
    return launch(self, *arguments, **keywords)
interpreter.GridExecutor.__call__ = watched
for name, function in kernels.cases(torch.device("cpu")):
    if "16" not in name and "64" not in name:  # one dtype is enough to see what is launched
        function()
print(" ".join(sorted(launched)))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GIGPO_FAST_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(jitted) >= 3 and set(ran.stdout.split()) == jitted


def test_gpu_shapes_stop_without_a_gpu(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "pytest", "bench/test_token_log_probs.py", "-q", "--shapes", "gpu", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "the gpu shapes need a CUDA device" in ran.stdout + ran.stderr
