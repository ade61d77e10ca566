"""Every known pitfall and fault has a test that exists, or a reason that is written down."""

import ast
import functools
import pathlib

import pytest

from tests.pitfalls import ELSEWHERE, FAULTS, IN_TEST_NAMES, PITFALLS

HERE = pathlib.Path(__file__).parent


@functools.cache
def names_in(file: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(tests: tuple[str, ...]) -> list[str]:
    """The tests named that do not exist."""
    return [name for name in tests if not (HERE / name.split("::")[0]).exists() or name.split("::")[1] not in names_in(name.split("::")[0])]


@pytest.mark.parametrize("number", PITFALLS)
def test_pitfall(number):
    entry = PITFALLS[number]
    assert entry.tests or entry.reason
    assert not missing(entry.tests)


@pytest.mark.parametrize("number", FAULTS)
def test_fault(number):
    assert FAULTS[number].tests and not missing(FAULTS[number].tests)


def test_every_number_is_there_once():
    assert list(PITFALLS) == list(range(1, 27))
    named, listed = set(IN_TEST_NAMES), set(FAULTS)
    assert not named & listed and not (named | listed) & set(ELSEWHERE)
    assert named | listed | set(ELSEWHERE) == set(range(1, 65))


def test_faults_that_live_in_names():
    names = {name for path in HERE.glob("test_*.py") for name in names_in(path.name)}
    absent = [number for number in IN_TEST_NAMES if not any(name.startswith(f"test_F{number:02}_") for name in names)]
    assert not absent


def test_a_test_that_is_gone_is_seen():
    assert missing(("test_pitfalls.py::test_that_never_was", "test_of_nothing.py::test_x", "test_pitfalls.py::test_pitfall")) == [
        "test_pitfalls.py::test_that_never_was",
        "test_of_nothing.py::test_x",
    ]
