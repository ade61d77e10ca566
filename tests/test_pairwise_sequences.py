"""Whole responses from tokens and from hidden states: sums, layouts, what cannot matter, memory, and what is refused."""

import math

import pytest
import torch

import gigpo_fast
from gigpo_fast import backend, validation
from gigpo_fast.head import Head
from gigpo_fast.logprob import token_log_probs
from gigpo_fast.pairwise import (
    AlphaDivergence,
    LabelKL,
    Logistic,
    LogisticSigmoidMix,
    NegativeLogLikelihood,
    PairClip,
    PairwiseObjective,
    PairwiseOutput,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
    all_pairs,
    halves,
    linear_pairwise_loss,
    linear_sequence_log_probs,
    pairwise_loss,
    pseudo_rewards,
    response_loss,
    sequence_log_probs,
)
from gigpo_fast.reference import pairwise as reference
from tests.loss_helpers import make_batch
from tests.memory import counted
from tests.pairwise_cases import FREE, OBJECTIVES
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, error, roundings

NATIVE = backend.why_not_native(torch.device("cpu")) is None
PATHS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the C++ rows are not built"))]


def test_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, math.nan, 3e38]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    found = sequence_log_probs(log_probs, mask, token_weights=torch.tensor([[1.0, math.inf, 0.5], [1.0, 1.0, math.nan]]))
    assert found.log_probs.tolist() == [-3.0, 0.0] and found.lengths.tolist() == [2.0, 0.0]
    found.log_probs.sum().backward()
    assert log_probs.grad.tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["rows", "packed", "ids"])
def test_against_the_reference(dtype, layout):
    g = torch.Generator().manual_seed(1)
    shape = (48,) if layout == "packed" else (4, 12)
    log_probs, mask = (-3 * torch.rand(shape, generator=g)).to(dtype), torch.rand(shape, generator=g) < 0.6
    ids = None if layout == "rows" else torch.randint(5, shape, generator=g).masked_fill(~mask, -1)
    weights = torch.rand(shape, generator=g, dtype=torch.float64)
    keywords = {"token_weights": weights} | ({} if ids is None else {"sequence_ids": ids, "sequences": 6})
    found = sequence_log_probs(log_probs, mask, **keywords)
    want, lengths = reference.sequence_log_probs(log_probs, mask, **keywords)
    assert error(found.log_probs, want) <= roundings(want, found.log_probs.dtype, 12) and torch.equal(found.lengths.double(), lengths)
    assert found.log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_layouts_agree():
    """Rows, packed tokens and rows of several responses: the same sequences, the same numbers."""
    b = make_batch((4, 6), dtype=torch.float64)
    rows = torch.arange(4)[:, None].expand(4, 6).contiguous()
    want = sequence_log_probs(b.log_probs, b.mask)
    packed = sequence_log_probs(
        b.log_probs[b.mask], torch.ones_like(rows[b.mask], dtype=torch.bool), sequence_ids=rows[b.mask], sequences=4
    )
    wide = sequence_log_probs(b.log_probs.view(2, 12), b.mask.view(2, 12), sequence_ids=rows.view(2, 12), sequences=4)
    for other in (packed, wide):
        assert error(other.log_probs, want.log_probs) <= 1e-14 and torch.equal(other.lengths, want.lengths)


def run(b, objective, *, linear, head=None, **keywords):
    """The loss and all gradients, of the fused function or of logits in torch."""
    leaves = [value.detach().clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    hidden, weight, bias = leaves
    pairs, ref = halves(b.mask.shape[0]), b.sequence_ref
    given = {"ref_log_probs": ref} if objective.needs_reference else {}
    given |= {"previous_log_probs": ref / 2} if objective.needs_previous else {}
    given |= {"targets": torch.full((pairs.shape[0],), 0.7, dtype=ref.dtype)} if objective.needs_targets else {}
    if linear:
        out = linear_pairwise_loss(hidden, Head(weight, bias), b.token_ids, b.mask, pairs, objective=objective, **given, **keywords)
    else:
        logits = hidden @ weight.T + bias
        temperature = keywords.get("temperature", 1.0)
        found = sequence_log_probs(token_log_probs(logits, b.token_ids, temperature=temperature).log_probs, b.mask)
        lengths = found.lengths if objective.needs_lengths else None
        out = pairwise_loss(found.log_probs, pairs, lengths=lengths, objective=objective, **given)
    out.loss.backward()
    return out, [leaf.grad for leaf in leaves]


def batch(dtype, shape=(6, 7)):
    b = make_batch(shape, dtype=dtype)
    b.mask[4] = False  # an empty response
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    b.sequence_ref = (sequence_log_probs(b.log_probs, b.mask).log_probs.double() + torch.linspace(-1, 1, shape[0])).to(compute)
    return b


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "ORPO"])
def test_linear_equals_logits(name, path):
    b = batch(torch.float64)
    with backend.use(path):
        out, gradients = run(b, OBJECTIVES[name], linear=True)
    want, wanted = run(b, OBJECTIVES[name], linear=False)
    assert error(out.loss, want.loss) <= 1e-12 * max(1.0, float(want.loss.detach().abs()))
    assert out.metrics_as_floats() == pytest.approx(want.metrics_as_floats(), rel=1e-5, abs=1e-6)
    for gradient, other in zip(gradients, wanted):
        assert error(gradient, other) <= roundings(other, torch.float64, 3000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["DPO", "SimPO", "RPO per token"])
def test_linear_precision(name, dtype):
    """No worse than logits in torch of the same dtype, against float64."""
    b, objective = batch(dtype), OBJECTIVES[name]
    exact = make_batch((6, 7), dtype=torch.float64)
    for field in ("hidden", "weight", "bias", "log_probs", "sequence_ref"):
        setattr(exact, field, getattr(b, field).double())
    exact.mask = b.mask
    out, gradients = run(b, objective, linear=True)
    plain, eager = run(b, objective, linear=False)
    want, wanted = run(exact, objective, linear=False)
    assert_no_worse_than("loss", out.loss, want.loss, plain.loss, factor=VALUE, floor=roundings(want.loss.detach(), torch.float32, 8))
    for what, got, right, other in zip(("hidden", "weight", "bias"), gradients, wanted, eager):
        assert_no_worse_than(what, got, right, other, factor=GRADIENT, floor=roundings(right, dtype, 2))


def test_untrained_tokens_never_reach_the_head():
    b, objective = batch(torch.float32), OBJECTIVES["DPO"]
    want, wanted = run(b, objective, linear=True)
    for garbage in (math.nan, math.inf, 3e38):
        b.hidden[~b.mask] = garbage
        b.token_ids[~b.mask] = -100
        out, gradients = run(b, objective, linear=True)
        for what, got, right in zip(("loss", "hidden", "weight", "bias"), (out.loss.detach(), *gradients), (want.loss.detach(), *wanted)):
            assert_same_bits(what, got, right)
        assert not gradients[0][~b.mask].any()


def test_temperature_may_be_one_a_token():
    b, objective = batch(torch.float64), OBJECTIVES["DPO"]
    temperature = 0.5 + torch.rand(b.mask.shape, dtype=torch.float64)
    out, gradients = run(b, objective, linear=True, temperature=temperature)
    want, wanted = run(b, objective, linear=False, temperature=temperature)
    assert error(out.loss, want.loss) <= 1e-12 and all(error(got, right) <= 1e-12 for got, right in zip(gradients, wanted))


def test_packed_responses():
    """Responses one after another in one stream, token weights and all."""
    b, weights = batch(torch.float64), torch.rand(6, 7, dtype=torch.float64)
    want = linear_sequence_log_probs(b.hidden, Head(b.weight, b.bias), b.token_ids, b.mask, token_weights=weights)
    rows = torch.arange(6)[:, None].expand(6, 7).reshape(-1)
    flat = (b.hidden.view(42, -1), Head(b.weight, b.bias), b.token_ids.view(-1), b.mask.view(-1))
    found = linear_sequence_log_probs(*flat, sequence_ids=rows, sequences=6, token_weights=weights.view(-1), invariant=True)
    assert error(found.log_probs, want.log_probs) <= 1e-13 and torch.equal(found.lengths, want.lengths)
    loss = linear_pairwise_loss(
        *flat, halves(6), sequence_ids=rows, sequences=6, ref_log_probs=b.sequence_ref, objective=PairwiseObjective()
    )
    assert error(loss.loss, run(b, PairwiseObjective(), linear=True)[0].loss) <= 1e-13


@pytest.mark.parametrize("path", PATHS)
def test_memory(path, monkeypatch):
    """chunk_bytes, the trained rows gathered, their gradient in fp32, and the results: far below the logits, of which no copy is ever held."""
    from gigpo_fast.ops import rows_torch

    monkeypatch.setattr(rows_torch, "_BLOCK_ELEMENTS", 1 << 15)
    n, width, vocabulary, chunk = 1024, 32, 3000, 2 << 20
    hidden = (0.2 * torch.randn(8, n // 8, width)).requires_grad_()
    weight = (0.2 * torch.randn(vocabulary, width)).requires_grad_()
    ids, mask = torch.randint(vocabulary, (8, n // 8)), torch.rand(8, n // 8) < 0.5
    trained = int(mask.sum())
    with backend.use(path), counted() as seen:
        out = linear_pairwise_loss(
            hidden, weight, ids, mask, halves(8), ref_log_probs=torch.zeros(8), objective=PairwiseObjective(), chunk_bytes=chunk
        )
        out.loss.backward()
    rows = 8 * (1 << 15) * 4 if path == "torch" else 0
    formula = chunk + 3 * trained * width * 4 + (hidden.numel() + weight.numel()) * 4 + rows + 128 * 8 * n + 64 * 1024
    assert seen.peak <= formula, f"{seen.peak} of {formula}"
    assert seen.largest < trained * vocabulary / 2


def test_no_gradient_for_the_reference():
    b = batch(torch.float32)
    hidden = b.hidden.clone().requires_grad_()
    with torch.no_grad():
        assert not linear_sequence_log_probs(hidden, b.weight, b.token_ids, b.mask).log_probs.requires_grad


PAIRS, NUMBERS = torch.tensor([[0, 1]]), torch.zeros(2)
ROWS, TRAINED = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
DPO = PairwiseObjective()
ERRORS = {
    "no reference": (lambda: pairwise_loss(NUMBERS, PAIRS, objective=DPO), "ref_log_probs must be given as .*score.reference is not 0"),
    "a reference too many": (
        lambda: pairwise_loss(NUMBERS, PAIRS, ref_log_probs=NUMBERS, objective=PairwiseObjective(score=FREE)),
        "ref_log_probs must be None for this objective.*would not be read",
    ),
    "no previous": (
        lambda: pairwise_loss(NUMBERS, PAIRS, objective=PairwiseObjective(score=Score(0.0, 0.5))),
        "previous_log_probs must be given",
    ),
    "no lengths": (lambda: pairwise_loss(NUMBERS, PAIRS, objective=OBJECTIVES["SimPO"]), "lengths must be given .*divides by lengths"),
    "lengths too many": (
        lambda: pairwise_loss(NUMBERS, PAIRS, lengths=NUMBERS, objective=PairwiseObjective(score=FREE)),
        "lengths must be None",
    ),
    "no targets": (
        lambda: pairwise_loss(NUMBERS, PAIRS, objective=PairwiseObjective(Square(), FREE)),
        "targets must be given .*link Square reads them",
    ),
    "targets too many": (
        lambda: pairwise_loss(NUMBERS, PAIRS, targets=torch.zeros(1), objective=PairwiseObjective(score=FREE)),
        "targets must be None",
    ),
    "pairs of another shape": (lambda: pairwise_loss(NUMBERS, PAIRS[0], ref_log_probs=NUMBERS, objective=DPO), r"pairs must be \(any, 2\)"),
    "pairs of floats": (lambda: pairwise_loss(NUMBERS, PAIRS.float(), ref_log_probs=NUMBERS, objective=DPO), "pairs must be .*int64"),
    "a pair beyond the responses": (
        lambda: pairwise_loss(NUMBERS, PAIRS + 1, ref_log_probs=NUMBERS, objective=DPO),
        "pairs must be numbers in 0 .. 1",
    ),
    "weights of another shape": (
        lambda: pairwise_loss(NUMBERS, PAIRS, ref_log_probs=NUMBERS, weights=NUMBERS, objective=DPO),
        r"weights must be \(1,\)",
    ),
    "a denominator of 0": (
        lambda: pairwise_loss(NUMBERS, PAIRS, ref_log_probs=NUMBERS, objective=DPO, denominator=0),
        "denominator must be",
    ),
    "no objective": (lambda: pairwise_loss(NUMBERS, PAIRS, objective=None), 'objective must be a PairwiseObjective.*recipe."dpo"'),
    "no objective, linear": (
        lambda: linear_pairwise_loss(ROWS, ROWS, ROWS, TRAINED, PAIRS, objective="dpo"),
        "objective must be a PairwiseObjective",
    ),
    "a bias on single responses": (
        lambda: response_loss(NUMBERS, NUMBERS > 0, objective=PairwiseObjective(rejected=0.5)),
        "objective must be one with rejected=1",
    ),
    "labels that are no bool": (lambda: response_loss(NUMBERS, NUMBERS, ref_log_probs=NUMBERS, objective=DPO), "desirable must be .*bool"),
    "a reference point that is no number": (
        lambda: response_loss(NUMBERS, NUMBERS > 0, ref_log_probs=NUMBERS, reference_point=math.nan, objective=DPO),
        "reference_point must be a finite number",
    ),
    "packed without ids": (lambda: sequence_log_probs(NUMBERS, NUMBERS == 0), "sequence_ids must be given as .* for packed tokens"),
    "ids without a count": (
        lambda: sequence_log_probs(NUMBERS, NUMBERS == 0, sequence_ids=torch.zeros(2, dtype=torch.int64)),
        "sequences must be the number of sequences",
    ),
    "a count that is not the rows": (lambda: sequence_log_probs(ROWS, TRAINED, sequences=3), "sequences must be None or 2"),
    "ids beyond the count": (
        lambda: sequence_log_probs(NUMBERS, NUMBERS == 0, sequence_ids=torch.tensor([0, 5]), sequences=2),
        "sequence_ids must be in 0 .. 1 at trained tokens",
    ),
    "a float mask": (lambda: sequence_log_probs(ROWS, ROWS), "mask must be .*bool"),
    "hidden of another shape": (
        lambda: linear_sequence_log_probs(ROWS, ROWS, TRAINED.long(), TRAINED),
        r"hidden must be \(2, 3, 'H'\) float",
    ),
    "an odd number of halves": (lambda: halves(3), "sequences must be an even number"),
    "groups that are no numbers": (lambda: all_pairs(NUMBERS, NUMBERS), "group must be .*int64"),
    "a negative distance": (lambda: all_pairs(NUMBERS, NUMBERS.long(), least=-1), "least must be a finite number >= 0"),
    "no divergence": (lambda: pseudo_rewards(NUMBERS, NUMBERS, divergence="kl"), "divergence must be a Transform.*JensenShannon"),
    "no link": (lambda: PairwiseObjective("logistic"), "link must be a Link block.*gigpo_fast.pairwise"),
    "no score": (lambda: PairwiseObjective(score=1.0), "score must be a Score block"),
    "no nll": (lambda: PairwiseObjective(nll=1.0), "nll must be a NegativeLogLikelihood block"),
    "beta 0": (lambda: PairwiseObjective(beta=0.0), "PairwiseObjective: beta must be a number > 0"),
    "a bias above 1": (lambda: PairwiseObjective(rejected=1.5), "rejected must be a number >= 0.0 and <= 1"),
    "smoothing": (lambda: Logistic(0.6), "Logistic: smoothing must be"),
    "flip rate": (lambda: Robust(0.5), "Robust: flip_rate must be"),
    "label KL": (lambda: LabelKL(0.0), "LabelKL: smoothing must be"),
    "mix": (lambda: LogisticSigmoidMix(0.0), "LogisticSigmoidMix: temperature must be"),
    "pair clip": (lambda: PairClip(0.0), "PairClip: epsilon must be"),
    "scale": (lambda: Square(scale=0.0), "Square: scale must be"),
    "alpha": (lambda: AlphaDivergence(0.0), "AlphaDivergence: alpha must not be 0"),
    "a transform that is none": (lambda: Score(transform=Sigmoid()), "Score: transform must be a Transform"),
    "a coefficient that is none": (lambda: NegativeLogLikelihood(None), "NegativeLogLikelihood: coefficient must be"),
    "nothing to merge": (lambda: PairwiseOutput.merge([]), "outputs must hold at least one"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with gigpo_fast.validation("full"), pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_link_of_ones_own():
    """A subclass is all it takes."""
    import dataclasses

    from gigpo_fast.pairwise import Link

    @dataclasses.dataclass(frozen=True)
    class Exponential(Link):
        """exp(-h): the boosting loss."""

        def loss(self, h, targets):
            return torch.exp(-h)

    out = pairwise_loss(torch.tensor([1.0, 0.0]), PAIRS, objective=PairwiseObjective(Exponential(), FREE, 2.0))
    assert float(out.loss) == pytest.approx(math.exp(-2))
    assert SoftLabel.reads_targets and not Square(1.0).reads_targets


@pytest.mark.parametrize("name", ["SimPO", "RPO per token"])
def test_compiles_as_one_graph(name):
    objective = OBJECTIVES[name]
    torch._dynamo.reset()

    def formula(log_probs, mask, ref):
        found = sequence_log_probs(log_probs, mask)
        given = {"ref_log_probs": ref} if objective.needs_reference else {}
        return pairwise_loss(found.log_probs, halves(4), lengths=found.lengths, objective=objective, **given).loss

    call = torch.compile(formula, fullgraph=True, dynamic=True, backend="aot_eager")
    for width in (5, 9):
        b = make_batch((4, width), dtype=torch.float64)
        leaf, other = b.log_probs.clone().requires_grad_(), b.log_probs.clone().requires_grad_()
        ref = torch.zeros(4, dtype=torch.float64)
        call(leaf, b.mask, ref).backward()
        formula(other, b.mask, ref).backward()
        assert error(leaf.grad, other.grad) <= 1e-14
    torch._dynamo.reset()


@pytest.mark.parametrize("wrong, found", [(-100, r"-100 at \[1, 2\]"), (99, r"99 at \[1, 2\]")])
def test_a_token_that_the_head_does_not_have_is_named_where_it_stands(wrong, found):
    mask = torch.tensor([[False, True, True], [True, False, True]])
    hidden, weight, ids = torch.randn(2, 3, 4), torch.randn(9, 4), torch.tensor([[wrong, 1, 2], [3, wrong, wrong]])
    with pytest.raises(ValueError, match=rf"^linear_sequence_log_probs: token_ids must be in 0 .. 8 at every trained token, got {found}"):
        linear_sequence_log_probs(hidden, weight, ids, mask)
    linear_sequence_log_probs(hidden, weight, ids, mask & (ids != wrong))


@pytest.mark.parametrize("wrong", [-1, -7, 3, 2**40])
@pytest.mark.parametrize("linear", [False, True])
def test_a_trained_token_of_no_response_is_refused(linear, wrong):
    """Where checking would wait, every number that comes out is NaN, and so are the gradients: nothing is added at a wild place."""
    b, ids = make_batch((12,), dtype=torch.float64, trained=1.1), torch.arange(12) // 4
    log_probs, hidden = b.log_probs.clone().requires_grad_(), b.hidden.clone().requires_grad_()

    def call(ids):
        if linear:
            return linear_sequence_log_probs(hidden, b.weight, b.token_ids, b.mask, sequence_ids=ids, sequences=3).log_probs
        return sequence_log_probs(log_probs, b.mask, sequence_ids=ids, sequences=3).log_probs

    bad = ids.clone()
    bad[5] = wrong
    with pytest.raises(ValueError, match=r"sequence_ids must be in 0 \.\. 2 at trained tokens, got .*; number the responses from 0"):
        call(bad)
    with validation("metadata"):
        found = call(bad)
    found.sum().backward()
    assert found.isnan().all() and (hidden if linear else log_probs).grad.isnan().any()
    assert call(ids).isfinite().all()
    b.mask[5] = False
    assert call(bad).isfinite().all()  # what stands at a masked token cannot matter


@pytest.mark.parametrize("wrong", [-1, -2, 7, 2**40])
def test_a_pair_of_no_response_is_refused(wrong):
    log_probs = (-torch.arange(1.0, 8.0, dtype=torch.float64)).requires_grad_()
    pairs, weights = torch.tensor([[0, 1], [2, wrong], [3, 4]]), torch.ones(3)
    objective = PairwiseObjective(score=Score(reference=0.0))
    with pytest.raises(ValueError, match=r"pairwise_loss: pairs must be numbers in 0 \.\. 6, got .*; count responses from 0; weight 0 leaves"):
        pairwise_loss(log_probs, pairs, weights=weights, objective=objective)
    with validation("metadata"):
        found = pairwise_loss(log_probs, pairs, weights=weights, objective=objective).loss
    found.backward()
    assert found.isnan() and log_probs.grad.isnan().any()
    weights[1] = 0  # the advice
    left_out = pairwise_loss(log_probs, pairs, weights=weights, objective=objective).loss
    assert left_out == pairwise_loss(log_probs, pairs[[0, 2]], objective=objective, denominator=3.0).loss
