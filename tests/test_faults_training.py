"""Faults seen between a trainer and its loss: what is averaged over, and what padding can touch (F20 to F22, F34 to F36)."""

import math

import pytest
import torch

from gigpo_fast.loss import linear_policy_loss, policy_loss, rows_that_matter
from gigpo_fast.objective import K3, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceMeanTokenSumNorm, TokenMean

LOSS = torch.tensor([[1.0, 3.0, 0.0], [5.0, 0.0, 0.0], [2.0, 2.0, 2.0]])  # on-policy the loss of a token is -A
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
ZEROS = torch.zeros(3, 3)


def mean_by(aggregation, **keywords) -> float:
    return float(policy_loss(ZEROS, -LOSS, MASK, objective=PolicyObjective(aggregation=aggregation), **keywords).loss)


def test_F20_the_divisor_of_a_sum_is_an_argument_and_not_the_padded_width():
    wide = [torch.nn.functional.pad(tensor, (0, 50)) for tensor in (ZEROS, -LOSS, MASK)]
    objective = PolicyObjective(aggregation=SequenceMeanTokenSumNorm(10))
    assert float(policy_loss(*wide, objective=objective).loss) == pytest.approx((4 + 5 + 6) / 3 / 10)
    assert mean_by(SequenceMeanTokenSumNorm(10)) == pytest.approx((4 + 5 + 6) / 3 / 10)
    with pytest.raises(TypeError, match="length"):
        SequenceMeanTokenSumNorm()


def test_F21_token_mean_of_the_batch_of_the_row_and_of_the_prompt_are_three_numbers():
    prompt = torch.tensor([0, 0, 1])[:, None].expand(3, 3)  # rows 0 and 1 answer one prompt
    assert mean_by(TokenMean()) == pytest.approx((1 + 3 + 5 + 6) / 6)
    assert mean_by(SequenceMeanTokenMean()) == pytest.approx((4 / 2 + 5 / 1 + 6 / 3) / 3)
    assert mean_by(SequenceMeanTokenMean(), sequence_ids=prompt) == pytest.approx(((4 + 5) / 3 + 6 / 3) / 2)


def test_F22_groups_without_variance_count_in_the_denominator_and_keep_their_penalty():
    advantages = torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, 3)
    new, reference = torch.full((3, 3), -1.0), torch.full((3, 3), -1.5)
    plain, penalised = PolicyObjective(), PolicyObjective(divergence=KLPenalty(0.1, K3()))
    assert float(policy_loss(new, advantages, MASK, objective=plain).loss) == pytest.approx((-2 + 0 + 3) / 6)
    kl = math.exp(-0.5) + 0.5 - 1
    found = policy_loss(new, advantages, MASK, ref_log_probs=reference, objective=penalised)
    assert float(found.loss) == pytest.approx((-2 + 0 + 3) / 6 + 0.1 * kl)
    assert found.metrics_as_floats()["n_active"] == 6
    assert rows_that_matter(MASK, advantages, objective=plain).tolist() == [True, False, True]
    assert rows_that_matter(MASK, advantages, objective=penalised).tolist() == [True, True, True]


@pytest.fixture
def batch():
    lengths, width = (5, 3, 1), 7
    hidden, weight = torch.randn(3, width, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens = [torch.randint(0, 11, mask.shape), *(torch.randn(mask.shape, dtype=torch.float64) for _ in range(3))]
    return hidden, weight, mask, tokens


def scored(hidden, weight, mask, tokens, objective):
    token_ids, advantages, old, reference = tokens
    return linear_policy_loss(
        hidden, weight, token_ids, advantages, mask, old_log_probs=old - 2.4, ref_log_probs=reference - 2.4, objective=objective
    )


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMeanTokenMean()])
def test_F34_left_padding_is_right_padding(batch, aggregation):
    objective = PolicyObjective(divergence=KLPenalty(0.1, K3()), aggregation=aggregation)
    hidden, weight, mask, tokens = batch
    left = [torch.stack([row.roll(7 - int(kept.sum()), 0) for row, kept in zip(tensor, mask)]) for tensor in (hidden, mask, *tokens)]
    found = []
    for inputs, kept, values in ((hidden, mask, tokens), (left[0], left[1], left[2:])):
        leaf = weight.clone().requires_grad_()
        output = scored(inputs, leaf, kept, values, objective)
        found.append((output.loss.detach(), *torch.autograd.grad(output.loss, leaf), output.metrics))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_F35_a_divergence_on_padding_is_no_nan(batch, garbage):
    objective = PolicyObjective(divergence=KLPenalty(0.1, K3(input_clip=None)))
    hidden, weight, mask, tokens = batch
    want = scored(hidden, weight, mask, tokens, objective)
    for spoiled in (2, 3):  # old, then reference log-probs
        values = list(tokens)
        values[spoiled] = torch.where(mask, values[spoiled], garbage)
        leaf = hidden.clone().requires_grad_()
        got = scored(leaf, weight, mask, values, objective)
        got.loss.backward()
        assert torch.equal(got.loss, want.loss) and torch.equal(got.metrics, want.metrics)
        assert torch.isfinite(leaf.grad).all() and not leaf.grad[~mask].any()


def test_F36_the_entropy_metric_is_that_of_trained_tokens(batch):
    hidden, weight, mask, tokens = batch
    log_p = torch.log_softmax(hidden @ weight.T, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    want = float(entropy[mask].mean())
    assert abs(float(entropy.mean()) - want) > 0.01, "padding has the same entropy: nothing was tested"
    fused = scored(hidden, weight, mask, tokens, PolicyObjective(divergence=KLPenalty(0.1, K3())))
    assert fused.metrics_as_floats()["entropy"] == pytest.approx(want, rel=1e-6)
    output = policy_loss(log_p[..., 0], tokens[1], mask, entropy=entropy.where(mask, torch.nan), objective=PolicyObjective())
    assert output.metrics_as_floats()["entropy"] == pytest.approx(want, rel=1e-6)
