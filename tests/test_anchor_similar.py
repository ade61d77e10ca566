"""Grouping by similarity against the plain difflib loop: the same groups in the same order, and bounds that only save time."""

import difflib
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import anchor, backend
from gigpo_fast.anchor import similar
from gigpo_fast.reference import anchor as reference
from tests.anchor_helpers import native_or_skip, on_every_path

THRESHOLDS = st.sampled_from([0.1, 0.5, 2 / 3, 0.8, 0.9, 0.95, 0.999])
WORDS = st.lists(st.sampled_from(["room", "door", "key", "north", "a", "1", "2"]), max_size=8).map(" ".join)
LETTERS = st.text(alphabet="ab \n\x00äß中\U0001f600\ud800", max_size=12)  # from one to four bytes, and a lone surrogate
TASKS = st.sampled_from(["x", "y"])


@st.composite
def long_texts(draw):
    """Texts around difflib's limit of 200 letters, edited here and there, of few letters or of many: some letters are popular there."""
    generator = random.Random(draw(st.integers(0, 2**31)))
    alphabet = draw(st.sampled_from(["ab", "abcdefgh ", "".join(map(chr, range(33, 180)))]))
    base = generator.choices(alphabet, k=draw(st.sampled_from([0, 1, 198, 199, 200, 201, 299, 300, 301])))
    texts = []
    for _ in range(8):
        letters = list(base)
        for _ in range(generator.choice([0, 1, 3, 20])):
            place = generator.randrange(len(letters) + 1)
            letters[place : place + generator.choice([0, 1, 1, 9])] = generator.choices(alphabet, k=generator.choice([0, 1, 1, 9]))
        texts.append("".join(letters))
    return texts


def check(states, group, threshold):
    expected = reference.group_similar_states(states, group, threshold).tolist()

    def compare():
        found = anchor.group_similar_states(states, group, threshold=threshold)
        assert found.ids.tolist() == expected
        assert found.counts.tolist() == [expected.count(number) for number in range(len(found.counts))]
        assert found.first_row.tolist() == [expected.index(number) for number in range(len(found.counts))]

    on_every_path(compare)


@given(st.lists(st.tuples(st.one_of(WORDS, LETTERS), TASKS), max_size=25), THRESHOLDS)
def test_groups_are_those_of_the_double_loop(rows, threshold):
    check([state for state, _ in rows], [label for _, label in rows], threshold)


@given(long_texts(), THRESHOLDS)
def test_long_texts_are_too(texts, threshold):
    check(texts, None, threshold)


@given(long_texts(), st.floats(0.01, 0.999))
def test_thresholds_are_met_to_the_last_bit(texts, other):
    """A ratio that occurs is reached by a threshold equal to it, and missed by the next larger number."""
    ratio = difflib.SequenceMatcher(None, texts[1], texts[0]).ratio()
    exactly = min(max(ratio, 0.01), 0.99)
    check(texts[:2], None, exactly)
    check(texts[:2], None, torch.nextafter(torch.tensor(exactly, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)).item())
    check(texts[:2], None, other)


def test_popular_letters_start_no_block():
    """The same 40 edits cost far more from 200 letters on: only rare letters start a block there."""
    generator = random.Random(3)

    def ratio(length):
        base = generator.choices("abcdefgh", k=length)
        edited = [letter.upper() if place % 5 == 0 else letter for place, letter in enumerate(base)]
        return difflib.SequenceMatcher(None, "".join(edited), "".join(base)).ratio(), ["".join(base), "".join(edited)]

    (below, short), (above, long) = ratio(199), ratio(200)
    assert below > 0.7 and above == 0.0
    on_every_path(lambda: anchor.group_similar_states(short, threshold=0.7).ids.tolist() == [0, 0])
    check(short + long, None, 0.7)
    check(long + short, None, 0.01)


def test_rollout_like_texts():
    base = "You are in a small room. There is a door to the north and a key on the table. " * 6  # over 200 letters
    states = [base + str(number) for number in range(12)] + [base[number:] for number in range(0, 120, 10)] + [base.upper()]
    check(states * 2, None, 0.9)
    found = anchor.group_similar_states(states * 2, threshold=0.9)
    assert 1 < found.counts.numel() < len(states)


def test_the_first_fitting_group_wins_not_the_best():
    states = ["aaaaaaaaab", "aaaaaaabbb", "aaaaaaaabb"]  # the third is equally near to both
    assert difflib.SequenceMatcher(None, states[2], states[0]).ratio() == difflib.SequenceMatcher(None, states[2], states[1]).ratio() == 0.9
    on_every_path(lambda: check(states, None, 0.85))
    assert anchor.group_similar_states(states, threshold=0.85).ids.tolist() == [0, 1, 0]


def test_the_new_text_comes_first():
    """The ratio is not symmetric: SequenceMatcher(None, state, first), as in the public implementation."""
    pair = next(pair for pair in _random_pairs() if difflib.SequenceMatcher(None, *pair).ratio() != difflib.SequenceMatcher(None, *pair[::-1]).ratio())  # fmt: skip
    middle = sum(difflib.SequenceMatcher(None, *order).ratio() for order in (pair, pair[::-1])) / 2
    check(pair, None, middle)
    check(pair[::-1], None, middle)
    assert anchor.group_similar_states(pair, threshold=middle).counts.numel() != anchor.group_similar_states(pair[::-1], threshold=middle).counts.numel()  # fmt: skip


def _random_pairs():
    generator = random.Random(0)
    while True:
        yield ["".join(generator.choices("abc", k=12)) for _ in range(2)]


def test_similarity_stays_inside_a_task_and_skips_invalid_rows():
    def check():
        found = anchor.group_similar_states(
            ["room 1", "room 2", "room 1", None, "room 2"], ["a", "b", "a", "a", "a"], threshold=0.8, valid=[1 > 0] * 3 + [False, True]
        )
        assert found.ids.tolist() == [0, 1, 0, -1, 0]
        assert found.first_row.tolist() == [0, 1] and found.counts.tolist() == [3, 1]

    on_every_path(check)


def test_tensor_labels_and_no_states():
    assert anchor.group_similar_states(["a", "a", "a"], torch.tensor([5, -1, 5]), threshold=0.5).ids.tolist() == [0, 1, 0]
    on_every_path(lambda: check([], None, 0.5))
    on_every_path(lambda: check(["", "", "a"], None, 0.5))


def test_equal_texts_are_compared_once(monkeypatch):
    calls = []
    original = difflib.SequenceMatcher.ratio
    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", lambda matcher: calls.append(1) or original(matcher))
    with backend.use("torch"):
        anchor.group_similar_states(["room one", "one room", "a cellar"] * 500, threshold=0.9)
    assert len(calls) == 1  # the cellar shares too few letters to be compared at all


def test_long_work_shows_its_progress(capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm, "tqdm", lambda items, **options: print(options["desc"], options["delay"]) or items)
    with backend.use("torch"):
        anchor.group_similar_states(["a", "b"], threshold=0.9)
    assert capsys.readouterr().out == "group_similar_states 5.0\n"


def test_the_native_operation_refuses_what_it_would_read_beyond():
    native_or_skip()
    codes, task = torch.tensor([97, 98], dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    for offsets in ([0, 1, 3], [0, -1, 2], [-1, 1, 2], [0, 2]):
        with pytest.raises(RuntimeError, match="first_fit: "):
            torch.ops.gigpo_fast_C.first_fit(codes, torch.tensor(offsets), task, 0.9)
    with pytest.raises(RuntimeError, match="Unicode code points"):
        torch.ops.gigpo_fast_C.first_fit(codes * 100_000, torch.tensor([0, 1, 2]), task, 0.9)


def test_the_native_path_is_the_one_that_runs(monkeypatch):
    native_or_skip()
    monkeypatch.setattr(similar, "first_fit_by_difflib", None)
    with backend.use("native"):
        assert anchor.group_similar_states(["abcd", "abce"], threshold=0.7).ids.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("states", "threshold", "error", "message"),
    [
        (["a"], 1.0, ValueError, "threshold must be below 1, got 1.0; for equal texts use group_states"),
        (["a"], 0.0, ValueError, "threshold must be a finite number > 0.0, got 0.0"),
        (["a"], float("nan"), ValueError, "threshold must be a finite number"),
        (["a"], "0.9", TypeError, "threshold must be a finite number"),
        (["a", b"b"], 0.9, TypeError, r"states\[1\] must be str, got b'b'; convert states to text"),
        (torch.zeros(2, 2), 0.9, TypeError, r"states\[0\] must be str"),
    ],
)
def test_messages(states, threshold, error, message):
    with pytest.raises(error, match=f"group_similar_states: {message}"):
        anchor.group_similar_states(states, threshold=threshold)
