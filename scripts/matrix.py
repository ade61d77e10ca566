"""Runs a part of the tests in other versions of Python and torch, each cell in an environment of its own under build/matrix.

python scripts/matrix.py                 # every cell (make test-matrix)
python scripts/matrix.py floor 3.12      # some (make test-matrix CELLS='floor 3.12')
python scripts/matrix.py --list

Interpreters are found on PATH and in pyenv's folder. A cell that cannot run here is named with the reason, and the others go on; the
exit code is 1 if a test fails or nothing ran. Environments are kept, so that a second run takes only the tests' time (`make clean`).
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import tree

FOLDER = tree.ROOT / "build" / "matrix"
NEEDED_GIB = 8  # measured: torch with CUDA and what it asks for take 4.6 GiB installed; pip unpacks beside it
TOOLS = ["setuptools>=77", "pytest>=8", "pytest-xdist", "hypothesis"]


class Missing(Exception):
    """Why a cell cannot run on this machine."""


class Failed(Exception):
    """What went wrong in a cell that can run here."""


class Cell(NamedTuple):
    """One environment, and whose C++ library is tested in it: its own, built against its own torch, or another cell's."""

    python: str
    packages: tuple[str, ...]
    library_of: str | None = None
    environment_of: str | None = None


FLOOR = ("torch==2.11.0", "triton==3.6.*; platform_system == 'Linux'", "transformers==4.57.*", "numpy==1.21.*")
NEWEST = ("torch", "transformers", "numpy")
CELLS = {
    "floor": Cell("3.10", FLOOR),
    "3.12": Cell("3.12", ("torch==2.11.0", "transformers", "numpy")),
    "newest": Cell("3.13", NEWEST),
    # One binary serves every torch from 2.11 on and every Python from 3.10 on; both ways round, because an ABI can break either way.
    "floor-library-in-newest": Cell("3.13", NEWEST, library_of="floor", environment_of="newest"),
    "newest-library-in-floor": Cell("3.10", FLOOR, library_of="newest", environment_of="floor"),
}

# What versions can break: the dispatcher and the C++ library, tracing and compiling, autograd, Triton, transformers, packaging.
TESTS = [
    "test_packaging.py",
    "test_doctor.py",
    "test_anchor.py",
    "test_anchor_faults.py",
    "test_anchor_hash.py",
    "test_advantage.py",
    "test_segments.py",
    "test_rows_native.py",
    "test_logprob.py",
    "test_policy_loss.py",
    "test_block_oracles.py",
    "test_compile.py",
    "test_logprob_compile.py",
    "test_segments_compile.py",
    "test_faults_autograd.py",
    "test_distributed.py",
    "test_integrations_transformers.py",
    "test_kernels_spawn.py",
    "test_kernels_compile.py",
]
# Under a library of another torch: all that calls it.
LIBRARY_TESTS = [
    "test_doctor.py",
    "test_anchor.py",
    "test_anchor_adversary.py",
    "test_anchor_collisions.py",
    "test_anchor_faults.py",
    "test_anchor_key.py",
    "test_anchor_large.py",
    "test_anchor_ranks.py",
    "test_anchor_rollouts.py",
    "test_anchor_similar.py",
    "test_segments.py",
    "test_rows_native.py",
    "test_rows_limits.py",
    "test_logprob.py",
    "test_policy_loss.py",
    "test_compile.py",
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)} (default: all)")
    parser.add_argument("--list", action="store_true", help="say which cells can run here, and run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cells if name not in CELLS]
    if unknown:
        parser.error(f"no cell {unknown[0]!r}; there are {', '.join(CELLS)}")
    lines, ran, failed = [], 0, 0
    for name in options.cells or CELLS:
        cell = CELLS[name]
        try:
            python = interpreter(cell.python)
            if options.list:
                lines.append(f"{name}: {python}, {' '.join(cell.packages)}")
                continue
            started = time.monotonic()
            run(name, cell, python)
            ran += 1
            lines.append(f"{name}: {versions(name, cell)}: passed in {time.monotonic() - started:.0f} s")
        except Missing as reason:
            lines.append(f"{name}: not run: {reason}")
        except Failed as reason:
            failed += 1
            lines.append(f"{name}: FAILED: {reason}")
    print("\n".join(["", "cells:", *(f"  {line}" for line in lines)]))
    return 0 if options.list or (ran and not failed) else 1


def interpreter(version: str) -> str:
    """A Python of this version that can make environments: this one, on PATH, or pyenv's newest patch release."""
    root = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = [path for path in (root / "versions").glob(f"{version}.*") if path.name.replace(".", "").isdigit()]
    patches = [path / "bin" / "python" for path in sorted(found, key=lambda path: int(path.name.split(".")[2]), reverse=True)]
    for candidate in (sys.executable, shutil.which(f"python{version}"), *patches):
        code = "import sys, venv, ensurepip; print(*sys.version_info[:2], sep='.')"
        # pyenv's shims are on PATH for versions that are not switched on, so a path alone says nothing
        ran = subprocess.run([str(candidate), "-c", code], capture_output=True, text=True, check=False) if candidate else None
        if ran is not None and ran.returncode == 0 and ran.stdout.strip() == version:
            return str(candidate)
    raise Missing(f"no Python {version} with venv on PATH or in {root / 'versions'} (with pyenv: pyenv install {version})")


def run(name: str, cell: Cell, python: str) -> None:
    """Prepare the cell and run its tests."""
    if cell.library_of is not None and not _library(cell.library_of).exists():
        prepare(cell.library_of, CELLS[cell.library_of], interpreter(CELLS[cell.library_of].python))
    binary = prepare(cell.environment_of or name, cell, python)
    there = FOLDER / name / "tree"
    if cell.library_of is not None:
        tree.copy(there)
        shutil.copy(_library(cell.library_of), there / "gigpo_fast")
    files = TESTS if cell.library_of is None else LIBRARY_TESTS
    command = [str(binary), "-m", "pytest", "-n", "auto", "-q", "-m", "not slow", *(f"tests/{file}" for file in files)]
    print(f"\n{name}: {len(files)} files of tests", flush=True)
    code = subprocess.run(command, cwd=there, env=_environment(PYTHONPATH=str(there)), check=False).returncode
    if code != 0:
        raise Failed(f"pytest ended with {code}; {versions(name, cell)}")


def prepare(name: str, cell: Cell, python: str) -> pathlib.Path:
    """An environment with the cell's packages, and a copy of the tree with a library built there; the environment's Python."""
    home = FOLDER / name
    binary, stamp = home / "env" / "bin" / "python", home / "env" / "installed"
    wanted = "\n".join([python, *cell.packages])
    if not stamp.exists() or stamp.read_text() != wanted:
        free = shutil.disk_usage(tree.ROOT).free >> 30
        if free < NEEDED_GIB:
            raise Missing(f"{free} GiB free, {NEEDED_GIB} GiB needed")
        _step(name, [python, "-m", "venv", "--clear", str(home / "env")])
        pip = [str(binary), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        _step(name, [*pip, "--upgrade", "pip"])
        index = os.environ.get("TORCH_INDEX")
        if index:
            _step(name, [*pip, "--index-url", index, next(package for package in cell.packages if package.startswith("torch"))])
        _step(name, [*pip, *cell.packages, *TOOLS])
        stamp.write_text(wanted)
    tree.copy(home / "tree")
    _step(name, [str(binary), "setup.py", "-q", "build_ext", "--inplace"], cwd=home / "tree", env=_environment(GIGPO_EXT="cpu"))
    return binary


def versions(name: str, cell: Cell) -> str:
    code = "import sys, importlib.metadata as m; print('Python', sys.version.split()[0], *(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    names = ["torch", "triton", "transformers", "numpy"] if sys.platform == "linux" else ["torch", "transformers", "numpy"]
    binary = FOLDER / (cell.environment_of or name) / "env" / "bin" / "python"
    ran = subprocess.run([str(binary), "-c", code, *names], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or ran.stderr.strip().splitlines()[-1]


def _library(name: str) -> pathlib.Path:
    return FOLDER / name / "tree" / "gigpo_fast" / "_C.abi3.so"


def _step(name: str, command: list[str], **options) -> None:
    print(f"{name}: {' '.join(command)}", flush=True)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip().splitlines()
        raise Failed(f"`{' '.join(command)}`: {said[-1] if said else 'no message'}")


def _environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    return {**inherited, **variables}


if __name__ == "__main__":
    sys.exit(main())
