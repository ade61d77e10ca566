"""Normalisers: their examples, what they must not touch, and lists that are equal exactly if they hold the same objects."""

import doctest
import pathlib
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast.anchor import normalise
from gigpo_fast.anchor.normalise import compose, digits, pattern, sorted_items, sorted_lines, unless, whitespace

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "anchor-states.md"
EVERY = [
    digits(),
    digits("N", after="Turn"),
    digits(before="left"),
    whitespace(),
    pattern(r"\bid \w+", "id"),
    sorted_items(),
    sorted_items(after="you see"),
    sorted_lines(),
    sorted_lines(after="Here:"),
    digits() | whitespace(),
    unless(digits(), ["drawer #"]),
]
OBJECTS = st.lists(st.sampled_from(["a lamp", "a key", "an old bowl (an egg, a fig)", "Tom's map", "12.5 coins"]), min_size=1, max_size=5)
TEXTS = st.text(alphabet="aB1 2,.:()\n\t-andé", max_size=40)


def test_examples_in_the_docstrings_and_on_the_page():
    assert doctest.testmod(normalise).attempted >= 12
    assert doctest.testmod(normalise).failed == 0
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 8 and result.failed == 0


@pytest.mark.parametrize("normaliser", EVERY, ids=repr)
def test_pickled_compared_printed(normaliser):
    copy = pickle.loads(pickle.dumps(normaliser))
    assert copy == normaliser and hash(copy) == hash(normaliser)
    assert sum(other == normaliser for other in EVERY) == 1
    if "unless" not in repr(normaliser):
        assert eval(repr(normaliser), vars(normalise)) == normaliser


@pytest.mark.parametrize("normaliser", EVERY, ids=repr)
@given(text=TEXTS)
def test_a_second_time_changes_nothing(normaliser, text):
    once = normaliser(text)
    assert normaliser(once) == once


@pytest.mark.parametrize(
    ("normaliser", "before", "after"),
    [
        (digits(), "x86 1,234.5 12:34:56 3. 4/5 -6", "x# # # #. #/# -#"),
        (digits(after="/"), "-= Hall =-4/17", "-= Hall =-4/#"),
        (digits(after="moves"), "moves 5, removes 5, moves5, moves:5", "moves #, removes 5, moves#, moves:5"),
        (digits(after="=-", before="/"), "=-4/17 =-4", "=-#/17 =-4"),
        (digits(before="left"), "5 left 6 lefts 7left 8\nleft", "# left 6 lefts #left 8\nleft"),
        (digits(before="left"), "123 left", "# left"),
        (digits(before="5 left"), "125 left 1 5 left", "125 left # 5 left"),
        (digits(before=":"), "12:30 7: 8", "12:30 #: 8"),
        (digits(r"\1"), "a 5", r"a \1"),
        (digits(after=" Turn "), "Turn 5", "Turn #"),
        (whitespace(), " a\t b \r\n\n c ", "a b\nc"),
        (pattern("(a)b", r"\1c"), "ab", "ac"),
        (sorted_items(), "You see a lamp, a key.", "You see a lamp, a key."),
        (sorted_items(after="see"), "I see b, a: d, c. I foresee b, a. I see one.", "I see a: d, b, c. I foresee b, a. I see one."),
        (sorted_items(after="you see"), "There you  see b, a.", "There you  see a, b."),
        (digits(after="your move"), "Your move 1, your  move 2", "Your move 1, your  move #"),
        (sorted_items(after=" see "), "I see b, a.", "I see a, b."),
        (sorted_items(after="see"), "You see c, b and a or 1,234 coins and sand.", "You see 1,234 coins, a, b, c, sand."),
        (sorted_items() | whitespace(), "In: a  key, a cup.", "In: a cup, a key."),
        (sorted_items(after="see"), "A (b, a). I see d (f, e), c.", "A (b, a). I see c, d (e, f)."),
        (sorted_items(), "In: b, a\nOn: d, c", "In: a, b\nOn: c, d"),
        (sorted_items(), "Time: 12:30, on (b, (d, c), a", "Time: 12:30, on ((c, d), a, b"),
        (sorted_items(), "x) b, a: d, c) f, e", "x) b, a: c, d) f, e"),
        (sorted_lines(), "In:\n\tb\n\ta\nOn:\n\td\n\tc", "In:\n\ta\n\tb\nOn:\n\tc\n\td"),
        (sorted_lines(), "b\na", "b\na"),
        (sorted_lines(), "- b\n  - 2\n  - 1\n- a", "- a\n- b\n  - 1\n  - 2"),
        (sorted_lines(), "\tb\n\ta box:\n\td\n\tc\n\n\tf\n\te", "\tb\n\ta box:\n\tc\n\td\n\n\te\n\tf"),
        (sorted_lines(), "\tb\n\ta\n* d\n* c\n\ta", "\ta\n\tb\n* c\n\ta\n* d"),
        (sorted_lines(after="Here:"), "b\na\nHere: \nd\nc\n\nf\ne", "b\na\nHere: \nc\nd\n\nf\ne"),
        (compose(), "a 5", "a 5"),
        (compose(pattern("5", "6"), pattern("6", "7")), "5", "7"),
        (unless(digits(), ["drawer #"]), "drawer 5", "drawer 5"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_before_and_after(normaliser, before, after):
    assert normaliser(before) == after


def sentence(objects, glue):
    return "Here you see " + (glue if len(objects) < 2 else ", ").join(objects[:-1]) + glue * (len(objects) > 1) + objects[-1] + ". Go."


@given(OBJECTS, OBJECTS, st.sampled_from([", ", " and ", ", and "]))
def test_sorted_items_are_equal_if_the_objects_are(one, other, glue):
    same = sorted(one) == sorted(other)
    assert (sorted_items(after="you see")(sentence(one, glue)) == sorted_items(after="you see")(sentence(other, ", "))) == same
    assert (sorted_items()("Here: " + glue.join(one)) == sorted_items()("Here: " + glue.join(other))) == same


@given(OBJECTS, OBJECTS, st.sampled_from(["- ", "\t", "  * ", "    "]))
def test_sorted_lines_are_equal_if_the_lines_are(one, other, mark):
    def text(objects, mark):
        return "Here:\n" + "".join(f"{mark}{thing}\n" for thing in objects) + "Go."

    same = sorted(one) == sorted(other)
    assert (sorted_lines()(text(one, mark)) == sorted_lines()(text(other, mark))) == same
    bare = sorted_lines(after="Here:")
    assert (bare(text(one, "").replace("Go.", "\nGo.")) == bare(text(other, "").replace("Go.", "\nGo."))) == same


@given(TEXTS)
def test_sorting_keeps_every_letter(text):
    def letters(text):
        return sorted(re.sub(r"\s|,|\band\b|\bor\b", "", text))

    assert letters(sorted_lines()(text)) == letters(text)
    assert letters(sorted_items()(text)) == letters(text)


def test_composition_is_flat_and_in_order():
    both = digits() | (whitespace() | pattern("# "))
    assert repr(both) == "digits() | whitespace() | pattern('# ', '')"
    assert both("Turn 1  2") == "Turn #"
    assert compose(digits()) == digits()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: digits(5), TypeError, "digits: replacement must be str, got 5"),
        (lambda: digits(after=5), TypeError, "digits: after must be str, got 5"),
        (lambda: digits(before=" "), ValueError, "digits: before must be a text to look for, got a blank text; leave it out"),
        (lambda: pattern("("), ValueError, "pattern: regex must be a regular expression, got '(': missing ), unterminated subpattern"),
        (lambda: pattern("a", None), TypeError, "pattern: replacement must be str, got None"),
        (lambda: sorted_items(after=""), ValueError, "sorted_items: after must be a text to look for"),
        (lambda: sorted_lines(after=1), TypeError, "sorted_lines: after must be str, got 1"),
        (lambda: compose(digits(), str.upper), TypeError, "compose: normalisers[1] must be a normaliser, got <method 'upper'"),
        (lambda: unless(str.upper, []), TypeError, "compose: normalisers[0] must be a normaliser"),
        (lambda: unless(digits(), "a"), TypeError, "unless: results must be a collection of texts, got 'a'; put it in a list"),
        (lambda: digits()(5), TypeError, "normalise: the state must be str, got 5; turn states into text first"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
