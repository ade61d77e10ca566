"""docs/papers.md says what is true: every paper once, tests and functions that exist, and no recipe without a row."""

import ast
import functools
import importlib
import pathlib
import re

import pytest

from gigpo_fast import recipes
from tests.papers import PAGE, STATES, Other, Paper, others, page, papers

HERE = pathlib.Path(__file__).parent
PAPERS, OTHERS = papers(), others()
LAYERS = ("objective", "advantage", "reward", "pairwise")


@functools.cache
def cases_of(file: str) -> dict[str, set[str]]:
    """The tests of a file, and the texts that their parametrisation names, where it is written in the same file."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    tables = {
        node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            named = [
                tables[each.id]
                for mark in node.decorator_list
                for each in ast.walk(mark)
                if isinstance(each, ast.Name) and each.id in tables
            ]
            found[node.name] = {text for part in (*node.decorator_list, *named) for text in texts(part)}
    return found


def texts(node: ast.expr) -> set[str]:
    """The texts of an expression; of a dictionary its keys alone."""
    parts = [key for key in node.keys if key is not None] if isinstance(node, ast.Dict) else [node]
    return {each.value for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def absent_tests(tests: tuple[str, ...]) -> list[str]:
    """The tests, or cases of tests, that do not exist."""
    absent = []
    for test in tests:
        file, name, case = re.fullmatch(r"(test_\w+\.py)::(test_\w+?)(?:\[(.+)\])?", test).groups()
        known = cases_of(file) if (HERE / file).exists() else {}
        if name not in known or (case is not None and case not in known[name]):
            absent.append(test)
    return absent


def absent_names(row: Paper) -> list[str]:
    """The recipes and functions that do not exist, those of the remarks too."""
    mentioned = re.findall(r"`(\w+\.\w+)`", row.source + row.remark)
    named = [*row.recipes, *(use.removeprefix("recipes.") for use in mentioned if use.startswith("recipes."))]
    absent = [name for name in named if name not in recipes.names()]
    for use in [*row.uses, *(use for use in mentioned if not use.startswith("recipes."))]:
        layer, _, name = use.partition(".")
        if layer not in LAYERS or name not in importlib.import_module(f"gigpo_fast.{layer}").__all__:
            absent.append(use)
    return absent


def wrong(row: Paper) -> list[str]:
    """What is not as the page's own rules have it."""
    found = [f"no state {row.state!r}"] if row.state not in STATES else []
    if row.state == "done" and not row.tests:
        found.append("done without a test")
    if row.state in ("done", "parts") and not (row.recipes or row.uses):
        found.append(f"{row.state} by nothing")
    if row.state != "done" and not row.remark:
        found.append(f"{row.state} without a reason")
    if not re.search(r"\(arXiv \d{4}\.\d{5}\)$", row.title):
        found.append(f"no arXiv id in {row.title!r}")
    if "|" in row.source + row.remark:
        found.append("a cell with a bar in it")
    return found + ([] if row.source or row.state == "out of scope" else ["no source"])


def without_a_row(names: list[str], rows: list[Paper], rest: list[Other]) -> list[str]:
    """Recipes that neither a row about their own paper names nor the second table."""
    own = {name for row in rows for name in row.recipes if name in recipes.names() and recipes.recipe(name).paper == row.title}
    return sorted(set(names) - own - {name for other in rest for name in other.recipes})


def test_every_paper_is_there_once():
    assert [row.number for row in PAPERS] == list(range(1, 68))
    assert len({row.name for row in PAPERS}) == 67 and len({row.title.rpartition("(arXiv")[2] for row in PAPERS}) == 67


@pytest.mark.parametrize("row", PAPERS, ids=lambda row: row.name)
def test_a_row_is_true(row):
    assert wrong(row) == [] and absent_names(row) == [] and absent_tests(row.tests) == []


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_another_paper_is_true(other):
    assert other.tests and absent_tests(other.tests) == [] and set(other.recipes) <= set(recipes.names())
    assert {recipes.recipe(name).paper for name in other.recipes} == {other.title}
    assert other.title not in {row.title for row in PAPERS}


def test_no_recipe_is_without_a_row():
    assert without_a_row(recipes.names(), PAPERS, OTHERS) == []
    named = [name for other in OTHERS for name in other.recipes]
    assert len(named) == len(set(named))


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.papers --write"


def test_what_is_wrong_is_seen():
    row = next(row for row in PAPERS if row.state == "done" and row.recipes)
    assert wrong(row._replace(tests=())) == ["done without a test"]
    assert wrong(row._replace(state="parts", remark="")) == ["parts without a reason"]
    assert wrong(row._replace(state="nearly")) and wrong(row._replace(source="")) and wrong(row._replace(paper="A paper without a number"))
    assert wrong(row._replace(recipes=(), uses=(), paper=row.title)) == ["done by nothing"]
    assert absent_names(row._replace(recipes=("gpso",), uses=("advantage.whitened", "loss.policy_loss", "reward.tool_cost"))) == [
        "gpso", "advantage.whitened", "loss.policy_loss",
    ]  # fmt: skip
    assert absent_names(row._replace(remark="see `recipes.gpso` and `objective.Clap`")) == ["gpso", "objective.Clap"]
    there = "test_papers.py::test_the_page_is_what_the_table_says"
    gone = ("test_papers.py::test_nothing", "test_nothing.py::test_x", "test_block_oracles.py::test_claimed_cases_agree[nobody]")
    assert absent_tests((there, *gone, "test_block_oracles.py::test_claimed_cases_agree[disco]")) == list(gone)
    assert without_a_row([*recipes.names(), "new"], PAPERS, OTHERS) == ["new"]
    assert without_a_row(list(row.recipes), [each for each in PAPERS if each != row], OTHERS) == sorted(row.recipes)
