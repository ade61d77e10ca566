"""scripts/matrix.py and scripts/tree.py: the cells name what exists, interpreters are found or named, nothing built is copied."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def scripts(monkeypatch):
    if not (ROOT / "scripts").is_dir():
        pytest.skip("an installed copy without its scripts")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("matrix"), importlib.import_module("tree")


def _interpreter(folder: pathlib.Path, version: str, *, works: bool = True) -> pathlib.Path:
    path = folder / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{f'echo {version}' if works else 'exit 127'}\n")
    path.chmod(0o755)
    return path


def test_every_file_and_cell_that_is_named_exists(scripts):
    matrix, _ = scripts
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert files >= {*matrix.TESTS, *matrix.LIBRARY_TESTS}
    for cell in matrix.CELLS.values():
        assert {cell.library_of, cell.environment_of} <= {None, *matrix.CELLS}
        if cell.environment_of is not None:
            assert cell[:2] == matrix.CELLS[cell.environment_of][:2]


def test_the_floor_is_what_the_project_asks_for_and_classifiers_name_what_runs(scripts):
    from setuptools.config.pyprojecttoml import read_configuration

    matrix, _ = scripts
    project = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
    floor = matrix.CELLS["floor"]
    assert project["requires-python"] == f">={floor.python}"
    least = {re.match("[a-z]+", package)[0]: re.search(r"\d+\.\d+", package)[0] for package in floor.packages}
    assert f"torch>={least['torch']}" in project["dependencies"]
    extras = project["optional-dependencies"]
    assert extras["triton"][0].startswith(f"triton>={least['triton']}") and extras["hf"] == [f"transformers>={least['transformers']}"]
    named = {found[1] for line in project["classifiers"] if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))}
    assert named == {cell.python for cell in matrix.CELLS.values()} | {"3.11"}, "3.11 is what the release itself is tested with"


def test_interpreters_of_pyenv_are_found_the_newest_that_runs_first(scripts, tmp_path, monkeypatch):
    matrix, _ = scripts
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3.99").write_text("#!/bin/sh\nexit 127\n")  # a shim of a version that is not switched on
    (shims / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}:/usr/bin:/bin")
    _interpreter(tmp_path / "versions" / "3.99.9", "3.99")
    wanted = _interpreter(tmp_path / "versions" / "3.99.10", "3.99")
    _interpreter(tmp_path / "versions" / "3.99.11", "3.99", works=False)
    _interpreter(tmp_path / "versions" / "3.99.12t", "3.99")  # without a GIL: another ABI
    assert matrix.interpreter("3.99") == str(wanted)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert matrix.interpreter(here) == sys.executable


def test_what_cannot_run_is_named_and_what_fails_fails(scripts, tmp_path, monkeypatch, capsys):
    matrix, _ = scripts
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    cells = {"absent": matrix.Cell("3.99", ()), "present": matrix.Cell(here, ()), "broken": matrix.Cell(here, ())}
    monkeypatch.setattr(matrix, "CELLS", cells)
    monkeypatch.setattr(matrix, "versions", lambda name, cell: "these versions")

    def run(name, cell, python):
        if name == "broken":
            raise matrix.Failed("pytest ended with 1")

    monkeypatch.setattr(matrix, "run", run)
    assert matrix.main(["absent", "present"]) == 0
    said = capsys.readouterr().out
    assert "absent: not run: no Python 3.99 with venv on PATH or in" in said and "pyenv install 3.99" in said
    assert "present: these versions: passed in" in said
    assert matrix.main([]) == 1 and "broken: FAILED: pytest ended with 1" in capsys.readouterr().out
    assert matrix.main(["absent"]) == 1, "nothing ran"
    with pytest.raises(SystemExit):
        matrix.main(["no-such-cell"])
    assert "no cell 'no-such-cell'; there are absent, present, broken" in capsys.readouterr().err


def test_a_copy_of_the_tree_holds_nothing_that_was_built(scripts, tmp_path):
    _, tree = scripts
    tree.copy(tmp_path / "copy")
    names = [path.name for path in (tmp_path / "copy").rglob("*")]
    assert not [name for name in names if name.endswith((".so", ".pyc"))] and not {".git", ".venv", "build"} & set(names)
    assert (tmp_path / "copy" / "gigpo_fast" / "kernels").is_symlink()
    code = "import torch; from gigpo_fast import backend; print(backend.__file__, backend.why_not_native(torch.device('cpu')))"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tmp_path / "copy", env={"PYTHONPATH": str(tmp_path / "copy")}, capture_output=True, text=True)
    assert ran.stdout.startswith(str(tmp_path / "copy")) and "the C++ library was not built" in ran.stdout, ran.stderr
