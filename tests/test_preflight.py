"""scripts/preflight.sh: what would stop an install stops it with the fix, what only slows it is a note; every target runs it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def _script(folder: pathlib.Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _preflight(python: str, folder: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TORCH_INDEX": "", **environment}
    command = ["sh", "scripts/preflight.sh", python]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_this_machine_passes(tmp_path):
    _script(tmp_path, "df", "printf 'h\\n/dev/x 1 1 99000000 1%% /\\n'")
    ran = _preflight(sys.executable, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^preflight: Python 3\.\d+\.\d+\S*, 94 GiB free: ok$", ran.stdout, flags=re.MULTILINE)


def test_no_python(tmp_path):
    ran = _preflight("no-such-python", tmp_path)
    assert ran.returncode == 1
    assert "no Python found as 'no-such-python'" in ran.stderr and "make test PY=" in ran.stderr


def test_old_python(tmp_path):
    _script(tmp_path, "python3.8", 'case "$*" in *version_info*) exit 1;; *) echo Python 3.8.1;; esac')
    ran = _preflight("python3.8", tmp_path)
    assert ran.returncode == 1
    assert "Python 3.8.1 is too old: 3.10 or newer is needed" in ran.stderr and "make test PY=" in ran.stderr


def test_python_without_venv(tmp_path):
    _script(tmp_path, "bare", 'case "$*" in *ensurepip*) exit 1;; *) echo Python 3.12.1;; esac')
    ran = _preflight("bare", tmp_path)
    assert ran.returncode == 1
    assert "has no venv module" in ran.stderr and "apt install python3-venv" in ran.stderr


def test_full_disk(tmp_path):
    _script(tmp_path, "df", "printf 'h\\n/dev/x 1 1 1500000 1%% /\\n'")
    ran = _preflight(sys.executable, tmp_path)
    assert ran.returncode == 1
    assert re.search(r"1 GiB free here, \d+ GiB needed", ran.stderr) and "free some space" in ran.stderr


@pytest.mark.parametrize("system, index, enough", [("Linux", "", 8), ("Linux", "https://index", 4), ("Darwin", "", 4)])
def test_disk_for_the_torch_that_pip_would_serve(tmp_path, system, index, enough):
    """With CUDA on Linux unless an index is given, with or without a GPU; the advice asks for less."""
    _script(tmp_path, "uname", f"echo {system}")
    for free, code in ((enough, 0), (enough - 1, 1)):
        _script(tmp_path, "df", f"printf 'h\\n/dev/x 1 1 {free << 20} 1%% /\\n'")
        ran = _preflight(sys.executable, tmp_path, TORCH_INDEX=index)
        assert ran.returncode == code, ran.stderr
    assert f"{enough - 1} GiB free here, {enough} GiB needed" in ran.stderr
    assert ("torch for CPU alone needs 4: " in ran.stderr and "make test TORCH_INDEX=" in ran.stderr) == (enough == 8)


def test_a_missing_compiler_is_a_note(tmp_path):
    _script(tmp_path, "df", "printf 'h\\n/dev/x 1 1 99000000 1%% /\\n'")
    ran = _preflight(sys.executable, tmp_path, CXX="no-such-compiler")
    assert ran.returncode == 0, ran.stderr
    assert "no C++ compiler found as 'no-such-compiler'" in ran.stdout
    assert "pure torch will be used" in ran.stdout and "apt install g++" in ran.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_target_sets_itself_up():
    """What `make TARGET` would do in a clone without .venv: the preflight first, then venv, torch, the package, the work."""
    work_of = {"demo": "examples/demo.py", "test": "pytest -n auto", "test-torch": 'pytest -n auto -m "not slow"', "bench": "pytest bench", "doctor": "doctor --selftest"}
    # a surrounding `make test TORCH=...` hands its variables down
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH", "PYTEST_ARGS")}
    for target, work in work_of.items():
        # -B: as if nothing had been made yet, wherever this runs
        ran = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
        steps = ["scripts/preflight.sh", "-m venv .venv", "torch==", f'install --no-build-isolation -e ".[{_extra(target)}]"', work]
        places = [ran.stdout.find(step) for step in steps]
        assert -1 not in places and places == sorted(places), f"make {target}: {list(zip(steps, places))}\n{ran.stdout}"


def _extra(target: str) -> str:
    return {"doctor": "triton", "test-torch": "test"}.get(target, target)
