"""Normalisers: what to take out of a text before it is compared, where texts differ although the state does not.

Each is a small pure function of one text, made to be passed as `key=` to `anchor.group_states`; `|` applies one after the other.
They compare equal if they do the same, can be pickled, and print as the expression that makes them. group_states calls a key once for
each distinct text, so a batch of 10^5 states with a few thousand different texts costs a few thousand calls.

    >>> from gigpo_fast.anchor import normalise
    >>> key = normalise.digits(after="moves:") | normalise.whitespace()
    >>> key("Kitchen.  moves: 17")
    'Kitchen. moves: #'
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .. import checks
from .lists import sort_inline, sort_lines, whole_words

__all__ = ["Normaliser", "compose", "digits", "pattern", "sorted_items", "sorted_lines", "unless", "whitespace"]

NUMBER = r"\d+(?:[.,:]\d+)*"  # 7, 1,234, 0.5 and 12:34:56 are one number each; signs, slashes and dashes stand between numbers
BLANKS = r"[^\S\n]*"


@dataclass(frozen=True)
class Normaliser:
    """A function from a text to the text that is compared in its place."""

    def __call__(self, text: str) -> str:
        if not isinstance(text, str):
            checks.fail("normalise", "the state", "str", text, "turn states into text first, or write a key of your own", error=TypeError)
        return self.apply(text)

    def apply(self, text: str) -> str:
        """What `text` is compared as; subclasses give this one."""
        raise NotImplementedError

    def __or__(self, other: "Normaliser") -> "Normaliser":
        return compose(self, other)


@dataclass(frozen=True, repr=False)
class _Pattern(Normaliser):
    """Put `replacement` in the place of every match of `regex`."""

    regex: re.Pattern
    replacement: str
    made_by: str = field(compare=False)

    def apply(self, text: str) -> str:
        return self.regex.sub(self.replacement, text)

    def __repr__(self) -> str:
        return self.made_by


@dataclass(frozen=True, repr=False)
class _Whitespace(Normaliser):
    def apply(self, text: str) -> str:
        lines = (" ".join(line.split()) for line in text.split("\n"))
        return "\n".join(line for line in lines if line)

    def __repr__(self) -> str:
        return "whitespace()"


@dataclass(frozen=True, repr=False)
class _SortedItems(Normaliser):
    after: str | None

    def apply(self, text: str) -> str:
        return sort_inline(text, self.after)

    def __repr__(self) -> str:
        return _call("sorted_items", after=self.after)


@dataclass(frozen=True, repr=False)
class _SortedLines(Normaliser):
    after: str | None

    def apply(self, text: str) -> str:
        return sort_lines(text, self.after)

    def __repr__(self) -> str:
        return _call("sorted_lines", after=self.after)


@dataclass(frozen=True, repr=False)
class _Composed(Normaliser):
    parts: tuple[Normaliser, ...]

    def apply(self, text: str) -> str:
        for part in self.parts:
            text = part.apply(text)
        return text

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts)) or "compose()"


@dataclass(frozen=True, repr=False)
class _Unless(Normaliser):
    normaliser: Normaliser
    results: frozenset[str]

    def apply(self, text: str) -> str:
        result = self.normaliser.apply(text)
        return text if result in self.results else result

    def __repr__(self) -> str:
        return f"unless({self.normaliser!r}, <{len(self.results)} results>)"


def digits(replacement: str = "#", *, after: str | None = None, before: str | None = None) -> Normaliser:
    """Mask numbers; with `after` or `before` only those that stand directly behind or in front of that text, blanks aside.

    >>> digits()("Turn 12: it is 09:30, you have 3 apples.")
    'Turn #: it is #, you have # apples.'
    >>> digits(after="Turn")("Turn 12: it is 09:30, you have 3 apples.")
    'Turn #: it is 09:30, you have 3 apples.'
    >>> digits(before="moves left")("You have 12 moves left and 3 apples.")
    'You have # moves left and 3 apples.'

    A number may hold points, commas and colons between its digits. Text that begins or ends in a letter matches whole words only:
    digits(after="moves") leaves "removes 5" alone.
    """
    _check_text("digits", replacement=replacement)
    after, before = _checked("digits", "after", after), _checked("digits", "before", before)
    front = "" if after is None else f"({whole_words(after)}{BLANKS})"
    back = "" if before is None else f"(?={BLANKS}{whole_words(before)})"
    masked = replacement.replace("\\", r"\\")
    options = _call("digits", *([replacement] if replacement != "#" else []), after=after, before=before)
    return _Pattern(re.compile(f"{front}{NUMBER}(?![.,:]?\\d){back}"), masked if after is None else rf"\g<1>{masked}", options)


def whitespace() -> Normaliser:
    r"""Make every run of blanks one blank, every run with a line break one line break, and strip both ends.

    >>> whitespace()("  A  red key.\n\n\tA door. \n")
    'A red key.\nA door.'

    Not for grids drawn with blanks, where they are empty cells. Indentation is lost, so sort lines first.
    """
    return _Whitespace()


def pattern(regex: str, replacement: str = "") -> Normaliser:
    r"""Put `replacement` (which may name groups, as in re.sub) in the place of every match of `regex`.

    >>> pattern(r"session [0-9a-f]+", "session")("session 7fa3: you are in the hall")
    'session: you are in the hall'
    """
    _check_text("pattern", regex=regex, replacement=replacement)
    try:
        compiled = re.compile(regex)
    except re.error as error:
        checks.fail("pattern", "regex", "a regular expression", f"{regex!r}: {error}", "escape literal text with re.escape")
    return _Pattern(compiled, replacement, _call("pattern", regex, replacement))


def sorted_items(*, after: str | None = None) -> Normaliser:
    """Sort the objects that a text lists, so that their order does not matter.

    A list runs from behind `after` to the end of its sentence; without `after` a list begins at every colon and opening bracket. Items
    are parted by commas, "and" and "or"; lists in brackets inside an item are sorted too.

    >>> sorted_items(after="you see")("Here you see a lamp, a bowl (an egg, an apple) and a key. A lamp, again.")
    'Here you see a bowl (an apple, an egg), a key, a lamp. A lamp, again.'
    >>> sorted_items()("On the table: a lamp, a key.")
    'On the table: a key, a lamp.'
    """
    return _SortedItems(_checked("sorted_items", "after", after))


def sorted_lines(*, after: str | None = None) -> Normaliser:
    r"""Sort lines that list objects: runs of lines with the same indentation or bullet, where they have one.

    With `after`, the lines that follow one ending in that text, up to an empty line. A line that ends in a colon is a heading: it
    stays where it is. Lines that are indented further belong to the line above them.

    >>> sorted_lines()("You see:\n- a lamp\n- a key\nA door is open.")
    'You see:\n- a key\n- a lamp\nA door is open.'
    >>> sorted_lines(after="You see:")("You see:\na lamp\na key")
    'You see:\na key\na lamp'
    """
    return _SortedLines(_checked("sorted_lines", "after", after))


def compose(*normalisers: Normaliser) -> Normaliser:
    """Apply one after the other, the first first; `a | b` is compose(a, b).

    >>> compose(digits(), pattern("Turn #: "))("Turn 12: hall")
    'hall'
    """
    parts: list[Normaliser] = []
    for number, part in enumerate(normalisers):
        if not isinstance(part, Normaliser):
            fix = "wrap a function of your own: key=lambda text: own(normaliser(text))"
            checks.fail("compose", f"normalisers[{number}]", "a normaliser", part, fix, error=TypeError)
        parts += part.parts if isinstance(part, _Composed) else (part,)
    return parts[0] if len(parts) == 1 else _Composed(tuple(parts))


def unless(normaliser: Normaliser, results: Iterable[str]) -> Normaliser:
    """Apply `normaliser` except where its result is one of `results`: there the text stays as it is.

    For texts that a normaliser would merge although they stand for different states.

    >>> key = unless(digits(), ["You see drawer #."])
    >>> key("Move 3"), key("You see drawer 3.")
    ('Move #', 'You see drawer 3.')
    """
    compose(normaliser)  # which checks it
    if isinstance(results, str):
        checks.fail("unless", "results", "a collection of texts", results, "put it in a list", error=TypeError)
    if isinstance(normaliser, _Unless):  # one set of exceptions says the same
        return _Unless(normaliser.normaliser, normaliser.results | frozenset(results))
    return _Unless(normaliser, frozenset(results))


def _checked(function: str, name: str, text: str | None) -> str | None:
    """An `after` or `before` without the blanks around it."""
    if text is None:
        return None
    _check_text(function, **{name: text})
    if not text.strip():
        checks.fail(function, name, "a text to look for", "a blank text", "leave it out to take every place")
    return text.strip()


def _check_text(function: str, **texts: str) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            checks.fail(function, name, "str", text, "pass a text", error=TypeError)


def _call(name: str, *values: str, **options: str | None) -> str:
    given = [*map(repr, values), *(f"{key}={value!r}" for key, value in options.items() if value is not None)]
    return f"{name}({', '.join(given)})"
