"""The examples of docs/rollouts.md run, and its table names every key of the schema."""

import pathlib
import re

import pytest

from gigpo_fast.rollouts import schema

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")


def test_the_reading_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "found = " in code)
    values: dict = {}
    exec(compile(example, "docs/rollouts.md", "exec"), values)
    assert values["levels"].advantages.shape == (4287,)
    assert "advantage" in values["found"].missing and "record them" in capsys.readouterr().out


@pytest.mark.parametrize("name", schema.KEYS)
def test_the_table_has_every_key(name):
    table = [line for line in TEXT.splitlines() if line.startswith("| `")]
    row = next(line for line in table if f"`{name}`" in line.split("|")[1])
    assert schema.KEYS[name].required == (row.split("|")[2].strip() == "yes")
