"""Blocks under torch.compile: one graph, fused and unfused, at lengths and with numbers that it was not traced with."""

import pytest
import torch

from gigpo_fast.head import Head
from gigpo_fast.loss import linear_policy_loss, policy_loss
from tests.block_cases import ALL
from tests.compile_helpers import fresh_compiler  # noqa: F401 - a fixture
from tests.loss_helpers import keywords_of, make_batch, run_linear, run_policy
from tests.tolerance import error

# One of each kind of arithmetic: sorts, quantiles, label sums, hashes, statistics of the batch, aggregations of their own.
NAMES = ["GMPO", "GroupContrast lse", "penalty own token mean", "penalty hinge", "TopEntropy", "CovarianceBand", "SecondMoment", "segment IS",
         "k3 rejection", "FutureKL", "ClipV", "RewardLabels", "AveragedRatio", "RatioRegion of sequences"]  # fmt: skip


def fused(hidden, weight, bias, token_ids, advantages, mask, objective, keywords):
    return linear_policy_loss(hidden, Head(weight, bias), token_ids, advantages, mask, objective=objective, **keywords).loss


def unfused(log_probs, entropy, advantages, mask, objective, keywords):
    return policy_loss(log_probs, advantages, mask, entropy=entropy, objective=objective, **keywords).loss


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_for_the_formula(name):
    objective = ALL[name]
    call = torch.compile(unfused, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 6), (4, 9)):
        b = make_batch(shape, dtype=torch.float64)
        log_probs = b.log_probs.clone().requires_grad_()
        loss = call(log_probs, b.entropy, b.advantages, b.mask, objective, keywords_of(b, objective))
        loss.backward()
        want = run_policy(b, objective)
        assert error(loss, want.loss) < 1e-13 and error(log_probs.grad, want.log_probs) < 1e-14


@pytest.mark.parametrize("name", ["TopEntropy", "segment IS", "FutureKL"])
def test_one_graph_for_the_fused_op(name):
    objective = ALL[name]
    call = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 6), (4, 9)):
        b = make_batch(shape, dtype=torch.float64)
        leaves = [getattr(b, leaf).clone().requires_grad_() for leaf in ("hidden", "weight", "bias")]
        loss = call(*leaves, b.token_ids, b.advantages, b.mask, objective, keywords_of(b, objective))
        loss.backward()
        want = run_linear(b, objective)
        assert error(loss, want.loss) < 1e-13
        for leaf, of in zip(leaves, ("hidden", "weight", "bias")):
            assert error(leaf.grad, getattr(want, of)) < 1e-13
