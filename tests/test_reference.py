"""The reference against numbers worked out by hand, and against finite differences: nothing judges the product unless it is right itself."""

import math

import pytest
import torch

from gigpo_fast.reference.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.reference.loss import policy_loss

LN2 = math.log(2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(new_to_old, advantage, *, x=None, **block):
    """Loss and gradient in log_prob of one token with the given ratio to the old policy and log-ratio x to the reference."""
    new = tensor(-1.0).requires_grad_()
    ref = None if x is None else new.detach() - x
    out = policy_loss(
        new, tensor(advantage), torch.tensor([True]), old_log_probs=new.detach() - math.log(new_to_old), ref_log_probs=ref, **block
    )
    (gradient,) = torch.autograd.grad(out.loss, new)
    return float(out.loss.detach()), float(gradient), out.metrics


@pytest.mark.parametrize(
    "new_to_old, advantage, block, loss, gradient",
    [
        (1.0, 2.0, {}, -2.0, -2.0),
        (1.5, 2.0, {}, -2.4, 0.0),  # above 1 + high: constant
        (1.5, -2.0, {}, 3.0, 3.0),  # a bad action is not protected by the upper bound
        (0.5, -1.0, {}, 0.8, 0.0),
        (0.5, 1.0, {}, -0.5, -0.5),
        (1.25, 1.0, {"clip_high": 0.28}, -1.25, -1.25),
        (0.75, -1.0, {"clip_low": 0.3}, 0.75, 0.75),
        (4.0, -1.0, {"dual": 3.0}, 3.0, 0.0),
        (2.5, -1.0, {"dual": 3.0}, 2.5, 2.5),
        (4.0, 1.0, {"dual": 3.0}, -1.2, 0.0),  # dual clip is for bad actions only
        (10.0, -1.0, {"ceiling": 4.0}, 4.0, 0.0),
        (10.0, 1.0, {"ceiling": 4.0}, -1.2, 0.0),
        (0.9, 1.0, {"ceiling": 0.5}, -0.5, 0.0),
        (3.0, -1.0, {"log_ratio_clip": LN2}, 2.0, 0.0),
        (0.1, 1.0, {"log_ratio_clip": (-LN2, 1.0)}, -0.5, 0.0),
        (7.0, 2.0, {"ratio": "none"}, -2.0, -2.0),
        (7.0, 2.0, {"surrogate": "reinforce"}, 2.0, -2.0),  # -A log_prob, log_prob = -1
        (1.5, 0.0, {}, 0.0, 0.0),
    ],
)
def test_surrogates_by_hand(new_to_old, advantage, block, loss, gradient):
    assert one(new_to_old, advantage, **block)[:2] == pytest.approx((loss, gradient), abs=1e-14)


@pytest.mark.parametrize(
    "kl, x, block, value, slope",
    [
        ("k1", LN2, {}, LN2, 1.0),
        ("k1", -LN2, {}, -LN2, 1.0),
        ("abs", -LN2, {}, LN2, -1.0),
        ("k2", LN2, {}, 0.2402265069591007, LN2),
        ("k3", LN2, {}, LN2 - 0.5, 0.5),
        ("k3", -LN2, {}, 1 - LN2, -1.0),
        ("k3", -30.0, {"kl_input_clip": 20.0}, 485165195.4097903 - 21.0, 0.0),
        ("k3", 30.0, {"kl_input_clip": 20.0}, 19.000000002061153, 0.0),
        ("k3", -3.0, {"kl_output_clip": 10.0}, 10.0, 0.0),  # e^3 - 4 = 16.09
        ("k1", LN2, {"kl_straight_through": True}, LN2, LN2),
        ("k3", LN2, {"kl_straight_through": True}, LN2 - 0.5, LN2),
    ],
)
def test_divergences_by_hand(kl, x, block, value, slope):
    loss, gradient, metrics = one(1.0, 0.0, x=x, kl=kl, kl_coefficient=0.5, **block)
    assert (loss, gradient) == pytest.approx((0.5 * value, 0.5 * slope), rel=1e-12)
    assert metrics["ref_kl"] == pytest.approx(value)


def test_importance_weighted_divergence_by_hand():
    # rho k3, gradient through both: rho (k3 + k3') = 2 (ln 2 - 1/2 + 1/2)
    loss, gradient, _ = one(2.0, 0.0, x=LN2, kl="k3", kl_coefficient=1.0, kl_importance_weighted=True)
    assert (loss, gradient) == pytest.approx((2 * (LN2 - 0.5), 2 * LN2))


@pytest.mark.parametrize(
    "aggregation, loss",
    [
        ("token_mean", 2.0),
        ("token_sum", 6.0),
        ("sequence_mean_token_sum", 3.0),
        ("sequence_mean_token_mean", 2.25),
        ("sequence_mean_token_sum_norm", 0.75),
    ],
)
def test_aggregations_by_hand(aggregation, loss):
    """Tokens that add 1 and 2 in one row, 3 in another; a third row is empty."""
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    values = tensor(1, 2, math.nan, 3, math.inf, 9).view(3, 2)
    out = policy_loss(-values, torch.ones(3, 2), mask, surrogate="reinforce", aggregation=aggregation, length=4.0)
    assert float(out.loss.detach()) == pytest.approx(loss)
    given = policy_loss(-values, torch.ones(3, 2), mask, surrogate="reinforce", aggregation=aggregation, length=4.0, denominator=8.0)
    own = {"token_mean": 3.0, "token_sum": 1.0}.get(aggregation, 2.0)
    assert float(given.loss) == pytest.approx(loss * own / 8.0)
    assert out.metrics["denominator"] == own and out.metrics["n_active"] == 3.0


def test_sequence_ratios_by_hand():
    """Log-ratios 0 and 2 ln 2 of one sequence: the mean is ln 2, the ratio 2 for both tokens."""
    new = tensor(-1.0, -1.0).requires_grad_()
    given = dict(old_log_probs=tensor(-1.0, -1.0 - 2 * LN2), sequence_ids=torch.tensor([4, 4]), aggregation="token_sum")
    through = policy_loss(new, tensor(-1.0, -3.0), torch.tensor([True, True]), ratio="sequence", **given)
    assert float(through.loss.detach()) == pytest.approx(8.0)  # 2 * 1 + 2 * 3
    torch.testing.assert_close(torch.autograd.grad(through.loss, new)[0], tensor(4.0, 4.0))  # 8 / length for both
    stopped = policy_loss(new, tensor(-1.0, -3.0), torch.tensor([True, True]), ratio="sequence_stop_gradient", **given)
    assert float(stopped.loss.detach()) == pytest.approx(8.0)
    torch.testing.assert_close(torch.autograd.grad(stopped.loss, new)[0], tensor(2.0, 6.0))


def test_weights_entropy_and_masks_by_hand():
    new, entropy = tensor(-1.0, -2.0).requires_grad_(), tensor(0.5, 4.0).requires_grad_()
    out = policy_loss(new, tensor(1.0, 1.0), torch.tensor([True, True]), surrogate="reinforce", entropy=entropy, entropy_coefficient=0.1,
                      weights=tensor(2.0, 0.5), kl="k1", kl_coefficient=1.0, kl_mask=torch.tensor([True, False]), ref_log_probs=tensor(-3.0, 5.0),
                      aggregation="token_sum")  # fmt: skip
    # 2 (1 + 2 - 0.05) + 0.5 (2 + 0 - 0.4)
    assert float(out.loss.detach()) == pytest.approx(2 * 2.95 + 0.5 * 1.6)
    torch.testing.assert_close(torch.autograd.grad(out.loss, [new, entropy])[1], tensor(-0.2, -0.05))
    assert out.metrics["ref_kl"] == pytest.approx(1.0) and out.metrics["entropy"] == pytest.approx(2.25)


def test_metrics_by_hand():
    ratios, A = tensor(1.5, 0.5, 0.5, 4.0, 1.0), tensor(1.0, -1.0, 1.0, -1.0, 1.0)
    out = policy_loss(
        ratios.log(), A, torch.ones(5, dtype=torch.bool), old_log_probs=torch.zeros(5), dual=3.0, log_ratio_clip=math.log(3.5)
    )
    found = {
        name: out.metrics[name] for name in ("clip_fraction_low", "clip_fraction_high", "dual_clip_fraction", "ratio_clamped_fraction")
    }
    assert found == {"clip_fraction_low": 0.2, "clip_fraction_high": 0.2, "dual_clip_fraction": 0.2, "ratio_clamped_fraction": 0.2}
    assert out.metrics["approx_kl"] == pytest.approx(-(math.log(1.5) - 2 * LN2 + math.log(3.5)) / 5)
    assert out.metrics["ratio_max"] == pytest.approx(3.5)


def test_infinite_log_probs_have_no_policy_term():
    new = tensor(-math.inf, -1.0, -1.0).requires_grad_()
    out = policy_loss(new, tensor(1.0, 1.0, 1.0), torch.ones(3, dtype=torch.bool), old_log_probs=tensor(-1.0, -math.inf, -1.0))
    assert float(out.loss.detach()) == pytest.approx(-1 / 3) and out.metrics["nonfinite_tokens"] == 2.0
    assert torch.autograd.grad(out.loss, new)[0].tolist() == pytest.approx([0.0, 0.0, -1 / 3])


def test_log_probs_by_hand():
    """p = 1/8, 2/8, 5/8."""
    logits = tensor(0.0, LN2, math.log(5)).unsqueeze(0)
    entropy = LN2 * 3 / 8 + LN2 * 2 / 4 + math.log(1.6) * 5 / 8
    for shift in (0.0, 1e4, -1e4):
        log_probs, found = token_log_probs(logits + shift, torch.tensor([1]))
        assert float(log_probs) == pytest.approx(-2 * LN2, abs=1e-11) and float(found) == pytest.approx(entropy, abs=1e-11)


@pytest.mark.parametrize(
    "logits, head, log_prob",
    [
        ((0.0, 2 * math.log(3)), {"temperature": 2.0}, math.log(0.75)),
        ((0.0, math.log(3) / 4), {"logit_scale": 4.0}, math.log(0.75)),
        ((0.0, 30 * math.atanh(0.5)), {"softcap": 30.0}, -math.log1p(math.exp(-15))),
        (
            (0.0, 10 * math.atanh(0.5)),
            {"softcap": 30.0, "logit_scale": 3.0, "temperature": 15.0},
            -math.log1p(math.exp(-1)),
        ),  # in this order
        ((0.0, math.log(3), 50.0), {"vocab_size": 2}, math.log(0.75)),
        ((-math.inf, 5.0, -math.inf), {}, 0.0),
        ((-20.0, -20.0), {}, -LN2),
    ],
)
def test_heads_by_hand(logits, head, log_prob):
    log_probs, entropy = token_log_probs(tensor(*logits).unsqueeze(0), torch.tensor([1]), **head)
    assert float(log_probs) == pytest.approx(log_prob, abs=1e-12)
    p = math.exp(log_prob)
    assert float(entropy) == pytest.approx(-p * log_prob - (1 - p) * math.log(1 - p) if p < 1 else 0.0, abs=1e-12)


def test_per_token_temperature_and_bias_by_hand():
    log_probs, _ = linear_token_log_probs(
        tensor(1.0, 2.0).view(2, 1), tensor(0.0, 1.0).view(2, 1), torch.tensor([1, 1]), bias=tensor(1.0, 0.0), temperature=tensor(1.0, 0.5)
    )
    assert log_probs.tolist() == pytest.approx([-LN2, -math.log1p(math.exp(-2.0))])  # logits (1, 1) and (1, 2) / 0.5


def test_gradients_are_those_of_finite_differences():
    g = torch.Generator().manual_seed(1)
    hidden, weight, bias = (torch.randn(*size, generator=g, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (7, 3), (7,)))
    ids = torch.randint(7, (5,), generator=g)

    def outputs(hidden, weight, bias):
        return linear_token_log_probs(
            hidden, weight, ids, bias=bias, softcap=3.0, temperature=0.8, logit_scale=1.2, vocab_size=6 + int(ids.max() > 5)
        )

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


@pytest.mark.parametrize("block", [
    {"ratio": "token"}, {"ratio": "sequence", "dual": 1.2}, {"surrogate": "reinforce"}, {"kl": "k3", "kl_coefficient": 0.5, "kl_importance_weighted": True},
    {"kl": "k2", "kl_coefficient": 0.5}, {"kl": "abs", "kl_coefficient": 0.5}, {"entropy_coefficient": 0.3}, {"aggregation": "sequence_mean_token_mean"},
])  # fmt: skip
def test_loss_gradients_are_those_of_finite_differences(block):
    g = torch.Generator().manual_seed(2)
    new, old, ref, A, entropy = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(5))
    mask = torch.rand(3, 4, generator=g) < 0.7

    def loss(new, entropy):
        return policy_loss(new, A, mask, old_log_probs=old, ref_log_probs=ref, entropy=entropy, **block).loss

    assert torch.autograd.gradcheck(loss, (new.requires_grad_(), entropy.requires_grad_()))
