"""The worked example of CONTRIBUTING.md: it is short, and it works as it stands."""

import pathlib
import re
import sys
import types

import pytest

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT[TEXT.index("## A new surrogate") : TEXT.index("## A new operation")]
BLOCK, TEST = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
NAME = "gigpo_fast.objective.soft_clip"


@pytest.fixture
def example(monkeypatch):
    """The test file's functions, with the block file in its place."""
    module = types.ModuleType(NAME)
    module.__package__ = "gigpo_fast.objective"
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(compile(BLOCK, "soft_clip.py", "exec"), module.__dict__)
    found: dict = {"__name__": "example"}
    exec(compile(TEST, "test_block_soft_clip.py", "exec"), found)
    return found


def test_it_is_short():
    assert len(BLOCK.splitlines()) + len(TEST.splitlines()) < 60


@pytest.mark.parametrize("name", re.findall(r"def (test_\w+)", TEST))
def test_it_works(example, name):
    example[name]()


def test_its_own_test_would_see_a_mistake(example, monkeypatch):
    block = sys.modules[NAME].SoftClip
    monkeypatch.setattr(block, "loss", lambda self, batch, log_ratio: -batch.advantages * log_ratio)
    with pytest.raises(AssertionError):
        example["test_against_the_formula"]()
