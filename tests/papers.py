"""Which paper is where: the table docs/papers.md, written from tests/papers_first.py, papers_second.py and papers_others.py.

python -m tests.papers --write writes the page; tests/test_papers.py keeps it true.
"""

import pathlib
import sys
from typing import NamedTuple

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "papers.md"
STATES = ("done", "parts", "not yet", "out of scope")

ABOVE = """# Papers

What the package has of {count} papers, and of others that they build on: the recipe that is the paper's method by name, or the functions
that it is made of; where its formula was taken from; and the tests (of `tests/`) that hold its numbers.

- **done**: every formula of the policy's training (rewards, advantages, loss, schedules) has a test with the numbers of the paper, of the
  authors' code or of both.
- **parts**: some of it has; the row says what is missing, or which formula is assumed because no source prints it.
- **not yet**: it would fit, and is not there.
- **out of scope**: there is no loss, advantage or reward over the log-probabilities of tokens in it; the row says why.

Not counted, in any row: the loss of a critic, sampling, reward models, and reading an answer's text.
{states}.

| | paper | recipes and functions | source of the formula | tests | state |
| --- | --- | --- | --- | --- | --- |
"""

BETWEEN = """
## Other papers and frameworks

| paper | recipes | tests |
| --- | --- | --- |
"""


class Paper(NamedTuple):
    """One of the numbered papers."""

    number: int
    name: str  # short
    state: str
    source: str  # of the formula
    remark: str = ""  # what is missing, assumed or the caller's
    recipes: tuple[str, ...] = ()  # the first one names the paper, unless `paper` does
    uses: tuple[str, ...] = ()  # "advantage.whiten", "objective.Clip": what a recipe's rewards, advantages or objective do not show
    tests: tuple[str, ...] = ()  # "test_reward.py::test_gates", or with the case in brackets
    paper: str = ""  # title and arXiv id

    @property
    def title(self) -> str:
        return self.paper or title_of(self.recipes[0])


class Other(NamedTuple):
    """A paper that is not numbered."""

    name: str
    recipes: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        return title_of(self.recipes[0])


def title_of(recipe: str) -> str:
    """What the registry says about a recipe's paper."""
    from gigpo_fast import recipes

    return recipes.recipe(recipe).paper


def losses(*cases: str) -> tuple[str, ...]:
    """A recipe's loss and gradient, by hand."""
    return tuple(f"test_recipes_numbers.py::test_losses[{case}]" for case in cases)


def advantages(*cases: str) -> tuple[str, ...]:
    """A recipe's advantages or rewards, by hand."""
    return tuple(f"test_recipes_advantages.py::test_advantages_and_rewards[{case}]" for case in cases)


def pairs(*cases: str) -> tuple[str, ...]:
    """A preference recipe's loss and gradient, by hand."""
    return tuple(f"test_recipes_pairs.py::test_numbers[{case}]" for case in cases)


def recorded(*files: str) -> tuple[str, ...]:
    """What other code answered: "block/disco" is the file disco in test_block_oracles.py, "recipes/disco" the recipe's answer to it."""
    function = dict.fromkeys(("block", "estimators"), "test_claimed_cases_agree") | dict.fromkeys(
        ("pairwise", "recipes"), "test_recorded_answers"
    )
    return tuple(f"test_{kind}_oracles.py::{function[kind]}[{file}]" for kind, file in (name.split("/") for name in files))


def papers() -> list[Paper]:
    """All numbered papers."""
    from tests.papers_first import FIRST
    from tests.papers_second import SECOND

    return [*FIRST, *SECOND]


def others() -> list[Other]:
    """The other papers of registered recipes."""
    from tests.papers_others import OTHERS

    return OTHERS


def page() -> str:
    """The page as text."""
    rows, counted = papers(), []
    for state in STATES:
        number = sum(row.state == state for row in rows)
        counted += [f"{number} {state}"] if number else []
    text = ABOVE.format(count=len(rows), states=", ".join(counted))
    for row in rows:
        has = [f"`recipes.{name}`" for name in row.recipes] + [f"`{name}`" for name in row.uses]
        state = f"**{row.state}**" + (f": {row.remark}" if row.remark else "")
        text += f"| {row.number} | {_named(row)} | {', '.join(has)} | {row.source} | {_listed(row.tests)} | {state} |\n"
    text += BETWEEN
    for other in others():
        text += f"| {_named(other)} | {', '.join(f'`recipes.{name}`' for name in other.recipes)} | {_listed(other.tests)} |\n"
    return text


def _named(row: Paper | Other) -> str:
    """The short name and the title, which may begin with it."""
    return row.title if row.title.lower().startswith(row.name.lower()) else f"{row.name}: {row.title}"


def _listed(tests: tuple[str, ...]) -> str:
    """The cases of one test together."""
    cases: dict[str, list[str]] = {}
    for test in tests:
        name, _, case = test.partition("[")
        cases.setdefault(name, []).extend([case.removesuffix("]")] if case else [])
    return "<br>".join(f"`{name}`" + (f" ({'; '.join(found)})" if found else "") for name, found in cases.items())


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
