"""Candidates for normalisers, read off texts of one task that are nearly equal: those equal but for numbers, for order, for blanks."""

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import normalise
from .evidence import Texts
from .normalise import NUMBER, Normaliser

MOST_CONTEXTS = 12  # by the steps that vote for them
MOST_OF_ONE_KIND = 20  # nearly equal texts that are compared
MOST_PAIRS = 3000  # of texts with the same words that are compared, a tenth of them thoroughly

_digits, _blanks, _items, _lines = normalise.digits(), normalise.whitespace(), normalise.sorted_items(), normalise.sorted_lines()
_WORD_BEFORE = re.compile(r"([^\W\d]+[^\w\s]*|[^\w\s]+)[^\S\n]*$")
_WORD_BEHIND = re.compile(r"[^\S\n]*([^\w\s]*[^\W\d]+|[^\w\s]+)")


class Candidate(NamedTuple):
    """A normaliser to try."""

    normaliser: Normaliser
    what: str  # "masking the number after '/'"
    is_number: bool
    doubt: str = ""  # why it should not be used unless the true states are known
    view: Callable[[str], str] | None = None  # what takes out of texts the other nuisances that would hide what it joins


def number_candidates(texts: Texts, current: list[str]) -> list[Candidate]:
    """The numbers that differ between texts equal in all else, each by what stands before it, behind it, and both."""
    votes: Counter = Counter()
    for pairs in _nearly_equal(texts, current, lambda text: _blanks(_digits(text))):
        numbers = [list(re.finditer(NUMBER, current[pair])) for pair in pairs[:MOST_OF_ONE_KIND]]
        for same_place in zip(*numbers):
            if len({found[0] for found in same_place}) > 1:
                votes[_context(current[pairs[0]], same_place[0])] += sum(texts.steps[pair] for pair in pairs)
    found: dict[Normaliser, str] = {}
    for (after, before), _ in votes.most_common(MOST_CONTEXTS):
        if after:
            found[normalise.digits(after=after)] = f"masking the number after {after!r}"
        if before:
            found[normalise.digits(before=before)] = f"masking the number before {before!r}"
        if after and before:
            found[normalise.digits(after=after, before=before)] = f"masking the number between {after!r} and {before!r}"
    return [Candidate(normaliser, what, True) for normaliser, what in found.items()]


def list_candidates(texts: Texts, current: list[str]) -> list[Candidate]:
    """The lists that stand in another order in texts that hold the same words."""
    votes: Counter = Counter()
    masked = [_digits(text) for text in current]  # so that a counter does not hide them
    words_of = functools.cache(lambda normaliser, text: normaliser(text).split())  # a text is compared with two neighbours
    compared = 0
    for pairs in _nearly_equal(texts, masked, lambda text: " ".join(sorted(re.findall(r"\w+", text)))):
        different = list({_blanks(masked[pair]): pair for pair in pairs}.values())[:MOST_OF_ONE_KIND]
        for one, other in zip(different, different[1:]):
            if compared < MOST_PAIRS and _moves_words(masked[one], masked[other]):
                compared += 1
                found = _orders(masked[one], masked[other], words_of, thorough=10 * compared <= MOST_PAIRS)
                votes.update(dict.fromkeys(found, texts.steps[one] + texts.steps[other]))
    chosen = [normaliser for normaliser, _ in votes.most_common(MOST_CONTEXTS)]
    return [Candidate(normaliser, _what_is_sorted(normaliser), False, view=_digits | _blanks) for normaliser in chosen]


def blank_candidates(texts: Texts, current: list[str]) -> list[Candidate]:
    """Blanks and line breaks, if texts differ in them."""
    equally_long = compared = 0
    for pairs in _nearly_equal(texts, current, _blanks):
        lengths = Counter(len(text) for text in {current[pair] for pair in pairs})
        compared += math.comb(sum(lengths.values()), 2)
        equally_long += sum(math.comb(count, 2) for count in lengths.values())
    if not compared:
        return []
    doubt = "most texts it would join are equally long, so their blanks may be the empty cells of a grid"
    return [Candidate(_blanks, "evening out blanks and line breaks", False, doubt if 2 * equally_long > compared else "")]


def _nearly_equal(texts: Texts, current: list[str], skeleton: Callable[[str], str]) -> Iterator[list[int]]:
    """The pairs of one task with equal skeletons, where there are several texts among them."""
    memo = {text: skeleton(text) for text in dict.fromkeys(current)}
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for pair, (task, text) in enumerate(zip(texts.task, current)):
        groups[task, memo[text]].append(pair)
    return (pairs for pairs in groups.values() if len({current[pair] for pair in pairs}) > 1)


def _context(text: str, number: re.Match) -> tuple[str, str]:
    before, behind = _WORD_BEFORE.search(text[max(0, number.start() - 80) : number.start()]), _WORD_BEHIND.match(text, number.end())
    return before[1] if before else "", behind[1] if behind else ""


def _orders(one: str, other: str, words_of: Callable[[Normaliser, str], list[str]], *, thorough: bool) -> list[Normaliser]:
    """The simplest normalisers that make two texts equal by sorting; `thorough`: also what stands before a list is looked at."""

    def agree(normaliser: Normaliser) -> bool:
        return words_of(normaliser, one) == words_of(normaliser, other)

    for simple in (_lines, _items, _lines | _items):
        if agree(simple):
            return [simple]
    if not thorough:
        return []
    place = next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    line = one.rfind("\n", 0, place) + 1
    heads = [head for head in one[:line].split("\n") if head.strip()][-MOST_OF_ONE_KIND:]
    by_lines = [normalise.sorted_lines(after=head.strip()) for head in reversed(heads)]
    sentence = re.split(r"[.;:!?(\n]", one[:place])[-1].split(", ")[0]
    words = sentence.split() if sentence.endswith(" ") or ", " in one[:place] else sentence.split()[:-1]
    phrases = [*(" ".join(two) for two in zip(words, words[1:])), *words][: 2 * MOST_OF_ONE_KIND]
    return [normaliser for normaliser in by_lines if agree(normaliser)][:1] + [
        normaliser for normaliser in (normalise.sorted_items(after=phrase) for phrase in phrases) if agree(normaliser)
    ]


def _moves_words(one: str, other: str) -> bool:
    """Whether some line that differs holds a word, unlike the rows of a grid, whose order is the state."""
    lines = [a for a, b in zip(one.split("\n"), other.split("\n")) if a != b]
    return any(re.search(r"[^\W\d_]{2}", line) and not line.isupper() for line in lines)


def _what_is_sorted(normaliser: Normaliser) -> str:
    after = getattr(normaliser, "after", None)
    lines, items = "sorted_lines" in repr(normaliser), "sorted_items" in repr(normaliser)
    listed = " and ".join(["lines"] * lines + ["objects"] * items)
    return f"sorting listed {listed}" + (f" after {after!r}" if after else "")
