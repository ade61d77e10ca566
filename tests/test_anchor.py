"""anchor.group_states and group_ids against plain dictionaries, on every path: values, types, layouts, validity, messages."""

import gc
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import anchor, backend
from gigpo_fast.anchor import paths
from gigpo_fast.anchor.hash_key import hash_key
from gigpo_fast.reference import anchor as reference
from tests.anchor_helpers import CPU, KEY, assert_groups, check_states, native_or_skip, on_every_path

TEXT = st.text(alphabet=st.characters(), max_size=6)  # surrogates and NUL included
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.sampled_from(["", "a", b"", b"a"]), TEXT)
NESTED = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
LABELS = st.one_of(st.integers(-3, 3), st.sampled_from([2**70, -(2**70), "a", "007", "7"]))


def with_labels_and_validity(states):
    rows = st.lists(st.tuples(states, LABELS, st.booleans()), max_size=40)
    return rows.map(lambda drawn: tuple(map(list, zip(*drawn))) if drawn else ([], [], []))


@given(with_labels_and_validity(st.one_of(TEXT, st.binary(max_size=4), st.sampled_from(["a", b"a"]))))
def test_lists_of_str_and_bytes(drawn):
    states, group, valid = drawn
    check_states(states, group, valid)


class Text(str):
    """A str of a type of its own is the same state as the plain one."""


class Raw(bytes):
    """So is a bytes."""


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 200, 241, 3000])
def test_every_kind_of_str_is_read_in_place(length):
    ascii_text, latin, two_bytes, four_bytes = ("a" * (length - 1) + last for last in ("b", "\xe9", "\u4e2d", "\U0001f600"))
    lone = ["\ud800" + ascii_text, ascii_text + "\udfff", "\udfff" + ascii_text, "\ud83d\ude00" + ascii_text]
    texts = [ascii_text, latin, two_bytes, four_bytes, *lone, ascii_text + "\0", "\0" + ascii_text, ""]
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    fresh = [text[:1] + text[1:] for text in texts]  # equal, but other objects
    states = [*texts, *raw, *fresh, *map(Text, texts), *map(Raw, raw), *map(bytes, raw)]
    expected = [*range(22), *range(11), *range(11), *range(11, 22), *range(11, 22)]

    def check():
        assert anchor.group_states(states).ids.tolist() == expected
        assert anchor.group_ids(states).tolist() == expected

    on_every_path(check)


def test_reading_in_place_leaves_objects_and_the_collector_alone():
    states = ["hall", "\ud800", b"hall", "caf\xe9"] * 50 + ["x" * number for number in range(2, 42)]  # "" and "x" are shared by everyone
    before = [sys.getrefcount(state) for state in states]
    gc.enable()
    on_every_path(lambda: anchor.group_states(states, list(states)))
    on_every_path(lambda: anchor.group_states([*states, 1]))
    assert gc.isenabled() and [sys.getrefcount(state) for state in states] == before
    gc.disable()
    try:
        on_every_path(lambda: anchor.group_states(states))
        assert not gc.isenabled()
    finally:
        gc.enable()


@given(with_labels_and_validity(NESTED))
def test_nested_python_values(drawn):
    states, group, valid = drawn
    check_states(states, group, valid)


@given(with_labels_and_validity(st.one_of(st.integers(-2, 2), st.sampled_from([2**63 - 1, -(2**63), 2**63, 2**200]))))
def test_lists_of_int(drawn):
    states, group, valid = drawn
    check_states(states, group, valid)


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float64, torch.bool]),
    st.sampled_from([(), (1,), (3,), (2, 2), (0,)]),
)
def test_fixed_width_tensors(values, dtype, shape):
    states = torch.tensor(values, dtype=torch.int64).to(dtype).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    check_states(states)
    check_states(states, [0] * len(values), torch.tensor([value != 1 for value in values], dtype=torch.bool))


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=30),
    st.sampled_from([torch.uint8, torch.int32, torch.float64]),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_ragged_tensors(parts, dtype, offset_dtype):
    values = torch.tensor([value for part in parts for value in part], dtype=dtype)
    offsets = torch.tensor([0, *np.cumsum([len(part) for part in parts])], dtype=offset_dtype)
    as_list = reference.ragged_states(values, offsets.tolist())
    check_states((values, offsets), as_reference=as_list)
    check_states((values, offsets), [1] * len(parts), [len(part) != 1 for part in parts], as_reference=as_list)


def test_ragged_values_with_more_dimensions():
    values, offsets = torch.tensor([[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]), torch.tensor([0, 2, 4, 5])
    check_states((values, offsets), as_reference=reference.ragged_states(values, offsets.tolist()))


@pytest.mark.parametrize(
    "states",
    [
        np.array([[1, 2], [1, 2], [2, 1]], dtype=np.int16),
        np.array([1.0, -0.0, 0.0, 1.0], dtype=">f4"),
        np.array(["a", "b", "a", ""]),
        np.array([b"a", b"b", b"a"]),
        np.array(["a", b"a", None, 1, True, "a"], dtype=object),
        np.array([["a", 1], ["a", 1], ["a", True]], dtype=object),
        np.array([True, False, True]),
        np.zeros((3, 0)),
        np.array(["2020-01-01", "2020-01-02", "2020-01-01"], dtype="datetime64[D]"),
        np.broadcast_to(np.arange(3), (4, 3)),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_numpy_arrays(states):
    check_states(states)
    check_states(states, np.arange(len(states)) // 2)


def test_layout_in_memory_does_not_matter():
    base = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3]])
    for view in (base, base.t().contiguous().t(), torch.stack([base, base], 2)[..., 0]):
        check_states(view, as_reference=list(base))
    check_states(torch.arange(10)[::5][:1])
    check_states(torch.tensor([1 + 2j, 1 - 2j]).conj(), as_reference=list(torch.tensor([1 - 2j, 1 + 2j])))


def test_states_that_require_grad():
    on_every_path(lambda: assert_groups(anchor.group_states(torch.ones(3, 2, requires_grad=True)), reference.group_states(["a"] * 3)))


@pytest.mark.parametrize("states", [[], (), np.zeros((0, 3)), torch.zeros(0), torch.zeros(0, 4), (torch.zeros(0), torch.tensor([0]))])
def test_zero_rows(states):
    check_states(states, as_reference=[])
    check_states(states, [], [], as_reference=[])


def test_no_valid_row():
    check_states(["a", None, object()], ["x", 1.5, None], [False] * 3)
    check_states(torch.ones(3, 2), None, torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("draw", ["equal", "different", "zipf"])
def test_shapes_of_duplication(draw):
    generator = torch.Generator().manual_seed(1)
    number = {
        "equal": torch.zeros(20_000, dtype=torch.int64),
        "different": torch.randperm(20_000, generator=generator),
        "zipf": (1 / torch.rand(20_000, generator=generator)).long(),
    }[draw]
    check_states([f"state {value}" for value in number.tolist()])
    check_states(number)


def test_a_large_table_grows_and_keeps_its_ids():
    states = torch.randperm(70_000).repeat(2)
    found = anchor.group_states(states)
    assert torch.equal(found.ids, torch.arange(70_000).repeat(2)) and found.counts.eq(2).all()


def test_thread_count_does_not_matter():
    native_or_skip()
    states = torch.randint(0, 50, (600_000, 3), dtype=torch.uint8)  # enough rows for threads to share
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = anchor.group_states(states)
        torch.set_num_threads(4)
        assert_groups(anchor.group_states(states), one)
    finally:
        torch.set_num_threads(threads)


def test_seed_does_not_matter(monkeypatch):
    expected = reference.group_states(list("abracadabra"))
    for seed in ("0", "1", "-1", "0xffffffffffffffff"):
        monkeypatch.setenv("GIGPO_FAST_HASH_SEED", seed)
        hash_key.cache_clear()
        on_every_path(lambda: assert_groups(anchor.group_states(list("abracadabra")), expected))
    monkeypatch.setenv("GIGPO_FAST_HASH_SEED", "salt")
    hash_key.cache_clear()
    with pytest.raises(ValueError, match="GIGPO_FAST_HASH_SEED must be an integer, got 'salt'; unset it"):
        anchor.group_states(["a"])
    monkeypatch.undo()
    hash_key.cache_clear()


def test_verify_fingerprint_gives_the_same_ids():
    states = ["a", "b", "a", "", "\ud800", "x" * 3000, "x" * 3000]
    check_states(states, verify="fingerprint")
    check_states(torch.tensor([[1, 2], [3, 4], [1, 2]]), verify="fingerprint")


def test_the_native_library_is_not_asked_on_the_torch_path(monkeypatch):
    monkeypatch.setattr(backend, "why_not_native", lambda device: "not built")
    assert paths.path(CPU) == ("torch", "not built")
    assert anchor.group_states(["a", "b", "a"]).ids.tolist() == [0, 1, 0]


def test_the_native_operators_have_fakes():
    native_or_skip()
    anchor.group_states(torch.zeros(2, 1))
    data, starts = torch.arange(6, dtype=torch.uint8), torch.tensor([0, 2])
    hashing = (*KEY, True)
    for arguments in ((2, 0, starts, torch.full_like(starts, 2), torch.zeros_like(starts)), (3, 2, None, None, None)):
        operator = torch.ops.gigpo_fast_C.group_packed
        torch.library.opcheck(operator, (data, *arguments, *hashing), test_utils=("test_schema", "test_faketensor"))


# ---- group_ids -----------------------------------------------------------------------------------------------------------------


@given(st.lists(LABELS, max_size=30))
def test_group_ids_numbers_by_first_occurrence(labels):
    expected = reference.group_states([0] * len(labels), labels)[0]
    on_every_path(lambda: torch.testing.assert_close(anchor.group_ids(labels), expected))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_group_ids_of_integer_tensors(dtype):
    labels = torch.tensor([7, 3, 7, 100, 3], dtype=dtype)
    on_every_path(lambda: torch.testing.assert_close(anchor.group_ids(labels), torch.tensor([0, 1, 0, 2, 1])))


@pytest.mark.parametrize(
    "labels",
    [np.array([5, -1, 5]), np.array(["x", "y", "x"]), np.array(["x", 3, "x"], dtype=object), [(1, "a"), frozenset({1}), (1, "a")], ["x", b"x", "x"]],
)
def test_group_ids_of_other_labels(labels):
    on_every_path(lambda: torch.testing.assert_close(anchor.group_ids(labels), torch.tensor([0, 1, 0])))


# ---- messages ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: anchor.group_states("text"),
            TypeError,
            r"group_states: states must be a list of str, bytes.* got str 'text'; convert it",
        ),
        (
            lambda: anchor.group_states(torch.tensor(1)),
            ValueError,
            r"states must be one row a state, \(S, ...\), got \(\) int64; add a first dimension",
        ),
        (lambda: anchor.group_states(["a"], verify="hash"), ValueError, r"verify must be one of .*'bytes', 'fingerprint'.*got 'hash'"),
        (lambda: anchor.group_states(["a", {1}]), TypeError, r"states\[1\] must be made of None.*set in \{1\}; compare the sorted elements of set"),
        (lambda: anchor.group_states(["a", [b"x", bytearray(b"y")]]), TypeError, r"states\[1\] must be .*bytearray"),
        (lambda: anchor.group_states([1, {1}, {2}], valid=[True, False, True]), TypeError, r"states\[2\] must be .*set"),
        (lambda: anchor.group_states(["a", "b"], ["x"]), ValueError, r"group must be 2 labels, one for each state, got 1 labels; give"),
        (lambda: anchor.group_states(["a", "b"], [["x"], ["y"]]), TypeError, r"group must be hashable labels, got .*unhashable.*list"),
        (lambda: anchor.group_states(["a"], valid=[True, False]), ValueError, r"valid must be \(1,\), got \(2,\) bool"),
        (lambda: anchor.group_states(["a"], valid=[1]), TypeError, r"valid must be \(1,\) bool"),
        (lambda: anchor.group_states(torch.eye(2).to_sparse()), TypeError, r"states must be plain dense tensors, got .*sparse.*to_dense"),
        (lambda: anchor.group_states(np.zeros(2, dtype=[("a", "i1"), ("b", "i8")])), TypeError, r"structured"),
        (lambda: anchor.group_ids(torch.zeros(2, 2, dtype=torch.int64)), ValueError, r"group_ids: labels must be \(any,\)"),
    ],
)
def test_messages(call, error, message):
    def check():
        with pytest.raises(error, match=message):
            call()

    on_every_path(check)


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (torch.zeros(3), torch.tensor([1, 3]), r"offsets\) must be 0 at index 0, got 1"),
        (torch.zeros(3), torch.tensor([0, 2, 1, 3]), r"non-decreasing, but it falls at index 2, got 1"),
        (torch.zeros(3), torch.tensor([0, 2]), r"must be 3 \(the number of values\) at index 1, got 2"),
        (torch.zeros(3), torch.tensor([0, 4]), r"must be 3 \(the number of values\) at index 1, got 4"),
        (torch.zeros(3), torch.zeros(0, dtype=torch.int64), r"at least one entry, 0, got \(0,\) int64"),
        (torch.zeros(3), torch.tensor([[0, 3]]), r"must be \(any,\).*got \(1, 2\) int64"),
        (
            torch.zeros(1, dtype=torch.uint8).expand(2**31),
            torch.tensor([0, 5], dtype=torch.int32),
            r"int64 for more than 2\*\*31 - 1 bytes",
        ),
        (torch.tensor(1), torch.tensor([0, 1]), r"values\) must be \(total, ...\)"),
    ],
)
def test_wrong_offsets(values, offsets, message):
    with pytest.raises(ValueError, match=message):
        anchor.group_states((values, offsets))


def test_offsets_must_be_integers():
    with pytest.raises(TypeError, match=r"offsets\) must be \(any,\) int64 or int32, got \(2,\) float32"):
        anchor.group_states((torch.zeros(3), torch.tensor([0.0, 3.0])))
