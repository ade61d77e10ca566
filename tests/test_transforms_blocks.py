"""The formula under transforms in many blocks: memory, precision, low dtypes, rows that hold anything, and the keywords it refuses."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from gigpo_fast.logprob import Head, linear_token_log_probs, token_log_probs
from gigpo_fast.loss import LossOutput, linear_grpo_loss, linear_policy_loss, plan_tokens, policy_loss
from gigpo_fast.objective import PolicyObjective
from gigpo_fast.ops import formula
from tests.loss_helpers import keywords_of, make_batch
from tests.memory import counted
from tests.recipe_cases import OBJECTIVES
from tests.tolerance import error

PLAIN = PolicyObjective()


def way_like(value, seed=1):
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(value.dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two rows, so that the smallest batch has several."""
    monkeypatch.setattr(formula, "MINIMUM_ROWS", 2)
    monkeypatch.setattr(formula, "_COPIES", 1 << 40)


def test_blocks_change_nothing(small_blocks):
    b = make_batch((3, 5), dtype=torch.float64)

    def ours(hidden, weight, bias):
        found = linear_token_log_probs(hidden, Head(weight, bias), b.token_ids)
        return (found.log_probs * found.entropy).sum()

    leaves = b.hidden, b.weight, b.bias
    blocked = jvp(grad(ours, (0, 1, 2)), leaves, tuple(way_like(leaf) for leaf in leaves))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formula, "MINIMUM_ROWS", 1000)
        whole = jvp(grad(ours, (0, 1, 2)), leaves, tuple(way_like(leaf) for leaf in leaves))
    for one, other in zip((*blocked[0], *blocked[1]), (*whole[0], *whole[1])):
        assert error(one, other) < 1e-12


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_no_logits_of_all_tokens_are_held(mode, monkeypatch):
    monkeypatch.setattr(formula, "_COPIES", 1 << 40)  # blocks of 16 rows
    b = make_batch((16, 16), hidden=4, vocabulary=400)

    def ours(hidden):
        return linear_grpo_loss(hidden, b.weight, b.token_ids, b.advantages, b.mask, old_log_probs=b.old).loss

    with counted() as seen:
        jvp(ours, (b.hidden,), (way_like(b.hidden),)) if mode == "forward" else grad(ours)(b.hidden)
    assert 16 * 400 <= seen.largest < 256 * 400 // 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_low_precision_operands_are_not_rounded_again(dtype):
    b = make_batch((4, 8), dtype=dtype)
    ways = way_like(b.hidden), way_like(b.weight)

    def loss(hidden, weight):
        return linear_token_log_probs(hidden, weight, b.token_ids).log_probs.square().sum()

    def exact(hidden, weight):
        return torch.log_softmax(hidden @ weight.T, -1).gather(-1, b.token_ids[..., None]).square().sum()

    wide = tuple(value.double() for value in (b.hidden, b.weight))
    got, want = jvp(loss, (b.hidden, b.weight), ways), jvp(exact, wide, tuple(way.double() for way in ways))
    assert abs(float(got[1]) - float(want[1])) <= 2e-6 * abs(float(want[1])) + 1e-5
    for ours, theirs, value in zip(grad(loss, (0, 1))(b.hidden, b.weight), grad(exact, (0, 1))(*wide), (b.hidden, b.weight)):
        assert ours.dtype == value.dtype
        assert error(ours, theirs) <= max(torch.finfo(dtype).eps, 1e-6) * float(theirs.abs().max())


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap"])
def test_autocast_casts_the_operands_and_nothing_else(transform):
    """As the fused loss: bfloat16 hidden states and weight, logits in float32, whatever region the derivative runs in."""
    b = make_batch((4, 8), hidden=64)
    exact = linear_token_log_probs(b.hidden.bfloat16().double(), b.weight.bfloat16().double(), b.token_ids).log_probs

    def ours(hidden):
        return linear_token_log_probs(hidden, b.weight, b.token_ids).log_probs

    def cast(hidden):
        return linear_token_log_probs(hidden.bfloat16().double(), b.weight.bfloat16().double(), b.token_ids).log_probs

    with torch.autocast("cpu", dtype=torch.bfloat16):
        if transform == "vmap":
            got, want = vmap(ours)(b.hidden[None])[0], exact
        elif transform == "jvp":
            got, want = jvp(ours, (b.hidden,), (b.hidden,))[1], jvp(cast, (b.hidden,), (b.hidden,))[1]
        else:
            got, want = grad(lambda h: ours(h).square().sum())(b.hidden), None
    if want is None:
        want = grad(lambda h: cast(h).square().sum())(b.hidden)
        assert error(got, want) <= 2**-7 * float(want.abs().max())  # d_hidden is rounded to bfloat16, once
    else:
        assert error(got, want) <= 3e-5 * float(want.abs().max())


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_untrained_tokens_can_hold_anything(junk):
    b = make_batch((3, 6), dtype=torch.float64)
    hidden, ids = b.hidden.clone(), b.token_ids.clone()
    hidden[~b.mask], ids[~b.mask] = junk, -100

    def loss(hidden, ids):
        return linear_policy_loss(hidden, b.weight, ids, b.advantages, b.mask, old_log_probs=b.old, objective=PLAIN).loss

    clean, dirty = (grad(lambda h, ids=ids: loss(h, ids))(h) for h, ids in ((b.hidden, b.token_ids), (hidden, ids)))
    assert torch.equal(clean, dirty) and float(clean[b.mask].abs().sum()) > 0
    clean, dirty = (jvp(lambda h, ids=ids: loss(h, ids), (h,), (b.hidden,))[1] for h, ids in ((b.hidden, b.token_ids), (hidden, ids)))
    assert torch.equal(clean, dirty)
    clean, dirty = (vmap(lambda h, ids=ids: loss(h, ids))(h[None])[0] for h, ids in ((b.hidden, b.token_ids), (hidden, ids)))
    assert torch.equal(clean, dirty)


def test_an_impossible_token_has_derivatives_of_the_others():
    logits = torch.tensor([[0.3, -torch.inf, 1.0, 0.0]], dtype=torch.float64)
    way = torch.tensor([[1.0, 0.0, -2.0, 0.5]], dtype=torch.float64)

    def ours(z):
        found = token_log_probs(z, torch.tensor([2]))
        return found.log_probs.sum() + found.entropy.sum()

    left = [0, 2, 3]

    def plain(z):
        log_p = torch.log_softmax(z, -1)
        return log_p[0, 1] - (log_p.exp() * log_p).sum()

    (_, got), (_, want) = jvp(ours, (logits,), (way,)), jvp(plain, (logits[:, left],), (way[:, left],))
    assert error(got, want) < 1e-14
    found = grad(ours)(logits)
    assert error(found[:, left], grad(plain)(logits[:, left])) < 1e-14 and float(found[0, 1]) == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_forward_mode_of_every_recipe_is_the_inner_product_with_its_gradient(name):
    """Detach rules included: a stopped gradient stops tangents too. Fused, unfused and under vmap."""
    objective = OBJECTIVES[name]
    b = make_batch((4, 6), dtype=torch.float64)
    keywords = keywords_of(b, objective)
    hidden, way = b.hidden.clone().requires_grad_(), way_like(b.hidden)

    def fused(hidden):
        return linear_policy_loss(hidden, b.weight, b.token_ids, b.advantages, b.mask, objective=objective, **keywords).loss

    def unfused(log_probs):
        return policy_loss(log_probs, b.advantages, b.mask, entropy=b.entropy, objective=objective, **keywords).loss

    value = fused(hidden)
    want = float((torch.autograd.grad(value, hidden)[0] * way).sum())
    got_value, got = jvp(fused, (b.hidden,), (way,))
    assert error(got_value, value) < 1e-12 and abs(float(got) - want) <= 1e-11 * max(1.0, abs(want))

    log_probs, way = b.log_probs.clone().requires_grad_(), way_like(b.log_probs)
    want = float((torch.autograd.grad(unfused(log_probs), log_probs)[0] * way).sum())
    assert abs(float(jvp(unfused, (b.log_probs,), (way,))[1]) - want) <= 1e-11 * max(1.0, abs(want))


def test_a_plan_names_the_tokens_that_are_scored():
    b = make_batch((4, 6), dtype=torch.float64)
    b.advantages[:2] = 0
    for score_idle in (True, False):
        plan = plan_tokens(b.mask, b.advantages, objective=PLAIN, score_idle=score_idle)

        def call(hidden, plan=plan):
            out = linear_policy_loss(hidden, b.weight, b.token_ids, b.advantages, b.mask, old_log_probs=b.old, objective=PLAIN, plan=plan)
            return out.loss, out.metrics

        value, _, metrics = jvp(call, (b.hidden,), (way_like(b.hidden),), has_aux=True)
        want = call(b.hidden)
        assert error(value, want[0]) < 1e-14
        active = [LossOutput(loss, vector).metrics_as_floats()["n_active"] for loss, vector in ((value, metrics), want)]
        assert active[0] == active[1]


def test_what_plain_torch_cannot_do_is_refused():
    b = make_batch()
    call = {"objective": PLAIN, "old_log_probs": b.old}
    way = (b.hidden,), (b.hidden,)
    for keywords, argument in (({"invariant": True}, "invariant"), ({"weight_grad_out": torch.zeros_like(b.weight)}, "weight_grad_out")):
        weight = torch.nn.Parameter(b.weight.clone())

        def loss(hidden, keywords=keywords, weight=weight):
            return linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, **call, **keywords).loss

        with pytest.raises(ValueError, match=f"linear_policy_loss: {argument} must be .* under torch.func and forward mode, got"):
            jvp(loss, *way)
    with pytest.raises(ValueError, match="linear_token_log_probs: chunk_bytes must be at least"):
        jvp(lambda h: linear_token_log_probs(h, b.weight, b.token_ids, chunk_bytes=10).log_probs, *way)
