"""What a call cannot refuse without waiting for a device: a broken number makes loss and gradients NaN, and is counted. Over every recipe."""

import math

import pytest
import torch

import gigpo_fast
from gigpo_fast import backend
from gigpo_fast.loss import plan_tokens
from gigpo_fast.objective import Clip, KLPenalty, NoSurrogate, PolicyObjective, SequenceRatio, TokenRatio
from gigpo_fast.objective.divergence import K1
from gigpo_fast.pairwise import linear_pairwise_loss, pairwise_loss
from tests import pairwise_cases
from tests.loss_helpers import make_batch, run_linear, run_policy, smallest_chunk
from tests.recipe_cases import OBJECTIVES

NAN, INF = math.nan, math.inf
PLAIN, SEQUENCE = PolicyObjective(), PolicyObjective(SequenceRatio())
FLAT = PolicyObjective(surrogate=NoSurrogate(), divergence=KLPenalty(0.1, K1()))  # a slope that does not depend on the reference


@pytest.fixture(autouse=True)
def _as_on_a_gpu():
    with gigpo_fast.validation("metadata"):
        yield


def broken(cause, value=NAN, **options):
    b = make_batch((3, 4), trained=1.1, **options)
    b.mask[0, 0] = False
    for place in ((0, 0), (1, 2)):  # an untrained token, whatever it holds, and a trained one
        getattr(b, cause)[place] = value
    return b


def gradients(found):
    return [gradient for gradient in (getattr(found, name, None) for name in ("hidden", "weight", "bias", "log_probs")) if gradient is not None]


def assert_shows(found, *, at_least=1):
    assert math.isnan(found.loss)
    assert all(bool(gradient.isnan().any()) for gradient in gradients(found))
    assert found.output.metrics_as_floats()["nonfinite_tokens"] >= at_least


def causes_of(objective):
    reads = [name for name in objective.reads if torch.is_floating_point(getattr(make_batch((1, 1)), name))]
    return ["advantages", "old", *(["ref"] if objective.needs_reference else [])], reads


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nan_of_a_trained_token_shows_in_loss_gradients_and_count(name):
    objective = OBJECTIVES[name]
    given, extras = causes_of(objective)
    for cause in given:
        for found in (run_linear(broken(cause), objective), run_policy(broken(cause), objective)):
            assert_shows(found)
    assert_shows(run_policy(broken("log_probs"), objective))
    assert_shows(run_linear(broken("hidden"), objective))
    assert_shows(run_linear(broken("token_ids", 23), objective))
    assert_shows(run_linear(broken("token_ids", -100), objective))
    for cause in extras:  # a block may have a rule for them; they are counted, and a NaN loss has NaN gradients
        for found in (run_linear(broken(cause), objective), run_policy(broken(cause), objective)):
            assert found.output.metrics_as_floats()["nonfinite_tokens"] >= 1
            assert not math.isnan(found.loss) or all(bool(gradient.isnan().any()) for gradient in gradients(found))


@pytest.mark.parametrize("path", ["native", "torch"])  # Triton's: test_kernels_interpreter_fused.py
@pytest.mark.parametrize("objective", [PLAIN, SEQUENCE, FLAT, PolicyObjective(surrogate=Clip(dual=3.0), divergence=KLPenalty(0.1))], ids=["clip", "sequence", "flat", "dual"])  # fmt: skip
def test_the_same_on_every_path_of_the_rows(path, objective):
    if path == "native" and backend.why_not_native(torch.device("cpu")) is not None:
        pytest.skip("no compiled library here")
    with backend.use(path):
        for cause in causes_of(objective)[0]:
            assert_shows(run_linear(broken(cause), objective))
        for wrong in (23, -100):
            assert_shows(run_linear(broken("token_ids", wrong), objective))
        assert_shows(run_linear(broken("hidden"), objective))
        b = broken("advantages")
        b.old[1, 2] = -INF  # a token out of the policy term, which has no such advantage
        assert_shows(run_linear(b, objective))


@pytest.mark.parametrize("cause", ["old", "hidden", "token_ids"])
@pytest.mark.parametrize("planned", [False, True])
def test_a_token_that_has_no_backward_shows_too(cause, planned):
    """Its advantage is 0, so it is in no gradient row: the loss alone would be NaN."""
    b = broken(cause, 1000 if cause == "token_ids" else NAN)
    b.advantages[1] = 0.0
    for objective in (PLAIN, SEQUENCE):
        plan = plan_tokens(b.mask, b.advantages, objective=objective) if planned else None
        assert_shows(run_linear(b, objective, plan=plan))
    b.advantages.zero_()
    assert_shows(run_linear(b, PLAIN))


def test_sequences_that_take_two_passes():
    b = broken("old", hidden=8)
    long = make_batch((2, 40), trained=1.1)
    long.old[1, 3] = NAN
    assert_shows(run_linear(long, SEQUENCE, chunk_bytes=smallest_chunk(long)))
    assert_shows(run_linear(b, SEQUENCE))


@pytest.mark.parametrize("run", [run_linear, run_policy])
def test_how_many_are_counted(run):
    b = make_batch((3, 4), trained=1.1)
    assert run(b, PLAIN).output.metrics_as_floats()["nonfinite_tokens"] == 0
    b.advantages[0, 1], b.old[1, 1], b.old[2, 2] = NAN, NAN, -INF
    assert run(b, PLAIN).output.metrics_as_floats()["nonfinite_tokens"] == 3
    unbounded, b = PolicyObjective(TokenRatio(None)), make_batch((3, 4), trained=1.1)
    b.old[1, 1], b.advantages[1, 1] = -1e4, -1.0  # the ratio overflows
    assert run(b, unbounded).output.metrics_as_floats()["nonfinite_tokens"] == 1


@pytest.mark.parametrize("run", [run_linear, run_policy])
def test_nothing_of_it_under_the_mask(run):
    b = make_batch((3, 4), trained=1.1)
    b.mask[0, 0] = False
    want = run(b, FLAT)
    for cause, value in (("advantages", NAN), ("old", NAN), ("ref", NAN), ("token_ids", -100), ("hidden", NAN), ("log_probs", NAN)):
        getattr(b, cause)[0, 0] = value
    found = run(b, FLAT)
    assert torch.equal(found.loss, want.loss) and found.output.metrics_as_floats() == want.output.metrics_as_floats()
    assert all(torch.equal(mine, other) for mine, other in zip(gradients(found), gradients(want)))


@pytest.mark.parametrize("name", pairwise_cases.OBJECTIVES)
def test_preferences(name):
    """Also where the link is flat (a hinge), or straight (its slope does not depend on the reference)."""
    objective = pairwise_cases.OBJECTIVES[name]
    for cause in ("log_probs", "ref_log_probs", "previous_log_probs", "weights", "targets"):
        b = pairwise_cases.responses(6)
        b.lengths[3], b.log_probs[3] = 4.0, -3.0  # no empty response
        given = pairwise_cases.given(b, objective, 3)
        given["weights"] = torch.ones(3, dtype=torch.float64)
        log_probs = b.log_probs.detach().clone()
        if cause == "log_probs":
            log_probs[0] = NAN
        elif cause in given:
            given[cause] = given[cause].clone()
            given[cause][0] = NAN
        else:
            continue
        log_probs.requires_grad_()
        loss = pairwise_loss(log_probs, torch.tensor([[0, 1], [2, 3], [4, 5]]), objective=objective, **given).loss
        loss.backward()
        assert math.isnan(loss.detach()) and bool(log_probs.grad.isnan().any()), cause
        assert bool(log_probs.grad[2:].isfinite().all())  # the other pairs are what they were


def test_preferences_from_hidden_states():
    b = make_batch((2, 4), trained=1.1)
    objective = pairwise_cases.OBJECTIVES["slic"] if "slic" in pairwise_cases.OBJECTIVES else next(iter(pairwise_cases.OBJECTIVES.values()))
    b.hidden[1, 2] = NAN
    hidden, weight = b.hidden.requires_grad_(), b.weight.requires_grad_()
    given = {"ref_log_probs": torch.tensor([-1.0, -2.0])} if objective.needs_reference else {}
    loss = linear_pairwise_loss(hidden, weight, b.token_ids, b.mask, torch.tensor([[0, 1]]), objective=objective, **given).loss
    loss.backward()
    assert math.isnan(loss.detach()) and bool(hidden.grad.isnan().any()) and bool(weight.grad.isnan().any())
