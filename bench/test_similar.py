"""Grouping by similarity against the public rule's loop: every state compared by difflib with the groups so far, in order.

    pytest bench/test_similar.py --benchmark-only

The loop would take minutes to hours on 4,096 states, so it is not run: which comparisons it makes follows from the groups, and a random
sample of them is timed in turns with ours. That leaves out the loop's own work between comparisons, in its favour.
"""

import difflib
import random

import pytest

from bench.timing import paired
from gigpo_fast import anchor, backend
from tests.rollout_steps import column

STATES, LETTERS, SAMPLE, ROUNDS, THRESHOLD = 4096, 400, 200, 7, 0.95
ALPHABET = "abcdefghijklmnopqrstuvwxyz "


def edited(text, edits, draw):
    letters = list(text)
    for _ in range(edits):
        letters[draw.randrange(len(letters))] = draw.choice(ALPHABET)
    return "".join(letters)


def rooms():
    """Texts of 300 letters and more that TextWorld wrote, repeated or cut to 400."""
    return [(text * 2)[:LETTERS] for text in dict.fromkeys(column("textworld", "obs")) if len(text) >= 300]


def small_edits(draw, count):
    """Each of many texts, with up to three letters changed."""
    bases = rooms()
    return [edited(draw.choice(bases), draw.randrange(4), draw) for _ in range(count)]


def one_text(draw, count):
    """The hardest case: one text with up to 20 letters changed, so that no bound parts any two states."""
    base = rooms()[0]
    return [edited(base, draw.randrange(21), draw) for _ in range(count // 8)]


def unrelated(draw, count):
    """Random letters: every state is a group of its own."""
    return ["".join(draw.choices(ALPHABET, k=LETTERS)) for _ in range(count)]


@pytest.mark.parametrize("path", ["native", "torch"])
@pytest.mark.parametrize("states", [small_edits, one_text, unrelated])
def test_against_the_loop(benchmark, report_ratio, request, states, path):
    if path == "native" and backend.native_library() is None:
        pytest.skip("the C++ library was not built")
    draw, tiny = random.Random(0), request.config.getoption("shapes") == "tiny"
    texts = states(draw, 64 if tiny else STATES)
    with backend.use(path):
        found = anchor.group_similar_states(texts, threshold=THRESHOLD)
        firsts, ids = found.first_row.tolist(), found.ids.tolist()
        count = 10 if tiny else SAMPLE
        # A state is compared with all groups before its own, and with its own unless it starts it.
        compared = [number + (firsts[number] != row) for row, number in enumerate(ids)]
        sample = [(row, draw.randrange(compared[row])) for row in draw.choices(range(len(texts)), weights=compared, k=count)]

        def some_comparisons():
            for row, number in sample:
                difflib.SequenceMatcher(None, texts[row], texts[firsts[number]]).ratio()

        rounds = ROUNDS if path == "native" else 1
        ours = paired(benchmark, some_comparisons, lambda: anchor.group_similar_states(texts, threshold=THRESHOLD), rounds=rounds)
    ratio = ours * sum(compared) / count
    benchmark.extra_info["estimated_ratio"] = ratio
    name = f"{len(texts)} similar states of {LETTERS} letters, {states.__name__.replace('_', ' ')}, {len(firsts)} groups"
    report_ratio(f"{name}, {path} path: {ratio:5.0f} x difflib loop (estimated)")
