"""`token_statistics` and `linear_token_statistics`: the sum of squared probabilities beside log-prob and entropy, without gradient."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from gigpo_fast import backend
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, linear_token_statistics, token_log_probs, token_statistics
from gigpo_fast.reference import logprob as reference
from tests.logprob_helpers import DTYPES, HEADS, PATHS, compute
from tests.loss_helpers import make_batch, smallest_chunk
from tests.memory import counted
from tests.tolerance import VALUE, assert_no_worse_than, assert_same_bits, error, roundings


@pytest.mark.parametrize("path", PATHS)
def test_by_hand(path):
    """Probabilities 1/2, 1/4, 1/4: entropy 1.5 ln 2, squares 1/4 + 1/16 + 1/16 = 3/8. At temperature 1/2: 2/3, 1/6, 1/6 and 1/2."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    with backend.use(path):
        found, colder = token_statistics(logits, torch.tensor([1])), token_statistics(logits, torch.tensor([1]), temperature=0.5)
    assert [value.item() for value in found] == pytest.approx([-2 * math.log(2), 1.5 * math.log(2), 3 / 8], rel=1e-6)
    assert colder.sum_squared_probs.item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [0.01, 5.0, 160.0])
def test_from_logits(size, head, dtype, path):
    """Floor: 8 roundings of the largest entry (float64: 512), and what rounding the largest z does where two huge logits nearly tie."""
    logits = (size * torch.randn(2, 5, 8, 37)).to(dtype)
    ids = torch.randint(31, (2, 5, 8))
    with backend.use(path):
        found, sister = token_statistics(logits, ids, **HEADS[head]), token_log_probs(logits, ids, **HEADS[head])
    exact = reference.sum_squared_probs(logits.double(), **HEADS[head])
    plain = reference.sum_squared_probs(logits.to(compute(dtype)), **HEADS[head])
    floor = roundings(exact, compute(dtype), 512 if dtype == torch.float64 else 8)
    if head == "scaled":
        floor += 2 * torch.finfo(compute(dtype)).eps * float(logits.abs().max()) * 1.7 / 0.6
    assert found.sum_squared_probs.dtype == compute(dtype)
    assert_no_worse_than("sum_squared_probs", found.sum_squared_probs, exact, plain, factor=VALUE, floor=floor)
    assert_same_bits("log_probs", found.log_probs, sister.log_probs)
    assert_same_bits("entropy", found.entropy, sister.entropy)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("small", [False, True], ids=["one chunk", "small chunks"])
def test_from_hidden_states(small, head, dtype, path):
    b = make_batch((3, 12), vocabulary=37, dtype=dtype)
    b.token_ids.clamp_(max=30)
    options = dict(HEADS[head])
    chunk = {"chunk_bytes": smallest_chunk(b)} if small else {}
    features = {name: value for name, value in options.items() if name != "temperature"}
    arguments = b.hidden, Head(b.weight, b.bias, **features), b.token_ids
    with backend.use(path):
        found = linear_token_statistics(*arguments, temperature=options.get("temperature", 1.0), **chunk)
        sister = linear_token_log_probs(*arguments, temperature=options.get("temperature", 1.0), **chunk)

    def squares(kind):
        return reference.sum_squared_probs(b.hidden.to(kind) @ b.weight.to(kind).T + b.bias.to(kind), **options)

    exact = squares(torch.float64)
    floor = roundings(exact, compute(dtype), 512 if dtype == torch.float64 else 8)
    assert_no_worse_than("sum_squared_probs", found.sum_squared_probs, exact, squares(compute(dtype)), factor=VALUE, floor=floor)
    assert_same_bits("log_probs", found.log_probs, sister.log_probs)
    assert_same_bits("entropy", found.entropy, sister.entropy)


@pytest.mark.parametrize("path", PATHS)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0, 30.0]), offset=st.sampled_from([-1e4, 0.0, 1e4]))
def test_relations(path, seed, spread, offset):
    """Between 1/V and 1; at least exp(-entropy) (Jensen); blind to a common offset, to the order of the columns and to the other rows."""
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randint(-64, 65, (6, 19), generator=g).double() / 64
    ids = torch.randint(19, (6,), generator=g)
    with backend.use(path):
        found = token_statistics(logits, ids)
        moved = token_statistics(logits[:, torch.randperm(19, generator=g)] + offset, ids)
        alone = token_statistics(logits[2:3], ids[2:3])
    squares = found.sum_squared_probs
    assert bool((squares >= 1 / 19 - 1e-14).all()) and bool((squares <= 1).all())
    assert bool((squares >= torch.exp(-found.entropy) - 1e-12).all())
    assert error(moved.sum_squared_probs, squares) < 1e-11
    assert_same_bits("one row", alone.sum_squared_probs, squares[2:3])


def test_one_minus_2p_plus_squares_is_the_squared_length_of_the_score():
    """What a variance-optimal baseline needs: the length of d log p / d z, by autograd through the gradient's own kernel."""
    logits, ids = torch.randn(9, 23, dtype=torch.float64).requires_grad_(), torch.randint(23, (9,))
    (score,) = torch.autograd.grad(token_log_probs(logits, ids).log_probs.sum(), logits)
    found = token_statistics(logits, ids)
    assert error(1 - 2 * found.log_probs.exp() + found.sum_squared_probs, score.square().sum(-1)) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_impossible_and_certain_tokens(path):
    """-inf counts 0; one survivor is 1; a row of only -inf, with NaN or +inf is NaN. Probabilities whose square is 0 in float32 count 0."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[0.0, -inf, 0.0], [-inf, 5.0, -inf], [-inf] * 3, [0.0, nan, 1.0], [0.0, inf, 1.0], [0.0, -60.0, -80.0]])
    with backend.use(path):
        squares = token_statistics(logits, torch.tensor([0, 1, 0, 0, 0, 0])).sum_squared_probs
    assert squares[[0, 1, 5]].tolist() == [0.5, 1.0, 1.0] and squares[2:5].isnan().all()


@pytest.mark.parametrize("path", PATHS)
def test_packed_and_padded_rows_are_the_same_bits(path):
    """(N, V), (1, N, V), (B, T, V) with padding behind every row, and a strided view; ids in int64 and int32."""
    b = make_batch((3, 4), vocabulary=19)
    logits = b.hidden @ b.weight.T
    wide = torch.full((3, 7, 22), math.nan)
    wide[:, 1:5, 2:21] = logits
    with backend.use(path):
        want = token_statistics(logits.reshape(12, 19), b.token_ids.reshape(12))
        for values, ids in ((logits[None].reshape(1, 12, 19), b.token_ids.reshape(1, 12)), (wide[:, 1:5, 2:21], b.token_ids.int())):
            for ours, theirs in zip(token_statistics(values, ids), want, strict=True):
                assert ours.shape == ids.shape
                assert_same_bits("layout", ours.reshape(12), theirs)


def test_there_is_no_gradient_and_no_graph():
    b = make_batch()
    hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
    for found in (token_statistics(hidden @ weight.T, b.token_ids), linear_token_statistics(hidden, weight, b.token_ids)):
        assert not any(value.requires_grad for value in found)
    assert token_log_probs(hidden @ weight.T, b.token_ids).log_probs.requires_grad


def test_no_logits_are_held():
    b = make_batch((400,), hidden=16, vocabulary=3000)
    with counted() as seen:
        linear_token_statistics(b.hidden, b.weight, b.token_ids, chunk_bytes=1 << 20)
    assert seen.largest * 4 <= 1 << 20 and seen.now <= 400 * 64


def test_invariant_gives_the_same_bits_in_any_batch():
    b = make_batch((50,), hidden=33, vocabulary=301)
    whole = linear_token_statistics(b.hidden, b.weight, b.token_ids, invariant=True)
    part = linear_token_statistics(b.hidden[7:9], b.weight, b.token_ids[7:9], invariant=True)
    for ours, theirs in zip(part, whole, strict=True):
        assert_same_bits("invariant", ours, theirs[7:9])


def test_no_tokens():
    for found in (
        token_statistics(torch.randn(0, 4, 7), torch.zeros(0, 4).long()),
        linear_token_statistics(torch.randn(0, 4, 5), torch.randn(7, 5), torch.zeros(0, 4).long()),
    ):
        assert [value.shape for value in found] == [(0, 4)] * 3


def test_errors_name_the_function():
    logits, hidden, weight, ids = torch.randn(3, 7), torch.randn(3, 5), torch.randn(7, 5), torch.zeros(3).long()
    with pytest.raises(ValueError, match=r"^token_statistics: token_ids must be \(3,\) int64 or int32, got \(2,\) int64"):
        token_statistics(logits, ids[:2])
    with pytest.raises(ValueError, match="^token_statistics: temperature must be a finite number > 0, got 0"):
        token_statistics(logits, ids, temperature=0)
    with pytest.raises(ValueError, match=r"^token_statistics: vocab_size must be an int in 1 .. 7, got 8"):
        token_statistics(logits, ids, vocab_size=8)
    with pytest.raises(
        ValueError, match=r"^token_statistics: token_ids must be in 0 .. 6 at every token, got 7 at \[2\]"
    ):
        token_statistics(logits, torch.tensor([0, 0, 7]))
    with pytest.raises(ValueError, match=r"^linear_token_statistics: hidden must be \(3, 5\)"):
        linear_token_statistics(hidden[:, :4], weight, ids)
    with pytest.raises(TypeError, match="^linear_token_statistics: head must be the head's weight"):
        linear_token_statistics(hidden, "weight", ids)
