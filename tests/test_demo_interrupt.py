"""Ctrl-C ends the demo with two processes at once and without a traceback, wherever it is."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import gigpo_fast

DEMO = pathlib.Path(__file__).parent.parent / "examples" / "demo.py"
NEEDED = ("gymnasium", "transformers", "matplotlib", "tqdm")
pytestmark = [
    pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the demo needs pip install 'gigpo-fast[demo]'"),
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups"),
]
# What the demo has printed when it is interrupted, and how much later that is.
MOMENTS = {"workers are starting": (" at a time", 0.2), "workers train": (" success in the last quarter", 0.2)}


def start(folder) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(gigpo_fast.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    options = ["--updates", "2", "--seeds", "200", "--episodes", "8", "--group-size", "4", "--processes", "2", "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, DEMO, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"the demo ended before it said {words!r}: {process.stderr.read()}")


def allowed() -> float:
    """A second, and on a busy machine as much more as it needs for nothing."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return 1.0 + 10 * max(0.0, time.perf_counter() - before - 0.05)


CASES = [(moment, "the terminal's processes") for moment in MOMENTS] + [("workers train", "the first process")]


@pytest.mark.parametrize("moment, to", CASES)
def test_ctrl_c_ends_the_demo_at_once(moment, to, tmp_path):
    process = start(tmp_path)
    try:
        wait_for(process, MOMENTS[moment][0])
        time.sleep(MOMENTS[moment][1])
        before = time.perf_counter()
        (os.killpg if to.startswith("the terminal") else os.kill)(process.pid, signal.SIGINT)
        said, complained = process.communicate(timeout=60)  # ends when the last process has let go of the pipes
        seconds = time.perf_counter() - before
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in said + complained and "KeyboardInterrupt" not in said + complained, complained
    assert "Process " not in complained and "leaked" not in complained, complained
    assert seconds < allowed(), seconds


def test_ctrl_c_during_the_imports(tmp_path):
    process = start(tmp_path)
    time.sleep(0.5 + 2 * (allowed() - 1.0))
    os.kill(process.pid, signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in complained, complained
