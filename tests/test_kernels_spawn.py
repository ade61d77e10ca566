"""Starts the interpreter's tests of the Triton kernels in a process where triton is imported with TRITON_INTERPRET=1."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets already")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "test_kernels_interpreter.py",
        "test_kernels_interpreter_clip.py",
        "test_kernels_interpreter_fused.py",
        "test_kernels_interpreter_scale.py",
        "test_segments_interpreter.py",
    ],
)
def test_kernels_in_the_interpreter(name):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    run = subprocess.run(command, cwd=HERE.parent, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, f"{run.stdout[-8000:]}\n{run.stderr[-4000:]}"
