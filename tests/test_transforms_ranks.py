"""Sequences cut over ranks, and gathered rows, under transforms: right where one rank is enough to say so, else refused by name."""

import pytest
import torch
from torch.func import grad, jvp

from gigpo_fast import objective as blocks
from gigpo_fast.distributed import gather_rows, global_denominator
from gigpo_fast.loss import linear_policy_loss, policy_loss
from tests.loss_helpers import make_batch

SEQUENCE = blocks.PolicyObjective(blocks.SequenceRatio(), aggregation=blocks.SequenceMeanTokenMean())


@pytest.fixture
def group():
    """A process group of this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def arguments(group):
    b = make_batch((12,), dtype=torch.float64)
    ids = torch.arange(12) // 4
    total = global_denominator(b.mask, aggregation=SEQUENCE.aggregation, sequence_ids=ids, sequence_group=group)
    return b, {"old_log_probs": b.old, "sequence_ids": ids, "objective": SEQUENCE, "denominator": total}


def test_sums_over_ranks_are_differentiable_twice(group):
    """The gradient of a gradient goes through the sum again; it was 0 where the sum was a constant of the backward."""
    b, keywords = arguments(group)

    def loss(log_probs):
        return policy_loss(log_probs, b.advantages, b.mask, **keywords).loss

    leaf = b.log_probs.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (leaf,)) and torch.autograd.gradgradcheck(loss, (leaf,))
    first = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    assert float(torch.autograd.grad(first.square().sum(), leaf)[0].abs().sum()) > 0


@pytest.mark.parametrize("transform", [grad, lambda f: lambda x: jvp(f, (x,), (x,))], ids=["grad", "jvp"])
def test_cut_sequences_are_refused_by_name(transform, group):
    b, keywords = arguments(group)
    calls = {
        "policy_loss": lambda x: policy_loss(x, b.advantages, b.mask, **keywords).loss,
        "linear_policy_loss": lambda x: linear_policy_loss(x, b.weight, b.token_ids, b.advantages, b.mask, **keywords).loss,
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: denominator must be one of whole sequences under torch.func and forward mode, got"):
            transform(call)(b.log_probs if name == "policy_loss" else b.hidden)
        leaf = (b.log_probs if name == "policy_loss" else b.hidden).clone().requires_grad_()
        call(leaf).backward()  # the advice
        assert leaf.grad is not None


def test_rows_of_one_rank_are_gathered_under_any_transform(group):
    rows = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(grad(lambda x: gather_rows(x, sum_gradients=True).square().sum())(rows), 2 * rows)


def test_rows_of_several_ranks_are_refused_by_name(group, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(RuntimeError, match="gather_rows: local must be gathered outside of torch.func and forward mode, got .*; gather outs"):
        grad(lambda x: gather_rows(x, sum_gradients=True).sum())(torch.randn(4, 3))
