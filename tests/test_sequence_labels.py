"""Labels of sequences: whatever numbers they are, in losses, denominators and plans, of a whole batch and of any part of one."""

import functools

import pytest
import torch

from gigpo_fast import objective as blocks
from gigpo_fast import recipes, validation
from gigpo_fast.distributed import Denominator, global_denominator
from gigpo_fast.loss import LossOutput, linear_policy_loss, plan_tokens, policy_loss, rows_that_matter
from gigpo_fast.objective import PolicyObjective, Scope
from tests.loss_helpers import keywords_of, make_batch, per_token
from tests.tolerance import error

LENGTHS = [5, 1, 7, 4, 3, 6, 2, 8]
N, PACKS = sum(LENGTHS), (slice(0, 13), slice(13, 20), slice(20, None))  # whole sequences
CUTS = (slice(0, 3), slice(3, 17), slice(17, None))  # sequences in pieces
HUGE = torch.tensor([10**12, 7, 2**62, 0, 33, 5, 10**12 + 1, 6])
POLICY = [name for name in recipes.names() if isinstance(recipes.recipe(name).objective, PolicyObjective)]
GSPO = PolicyObjective(blocks.SequenceRatio(), aggregation=blocks.SequenceMeanTokenMean())
TOKEN = PolicyObjective(aggregation=blocks.SequenceMeanTokenMean())


@functools.cache
def _batch():
    b = make_batch((N,), dtype=torch.float64, trained=0.8)
    number = torch.repeat_interleave(torch.arange(8), torch.tensor(LENGTHS))
    b.advantages[number == 3] = 0
    b.group_ids, b.correct = number // 4, number % 2 == 0
    b.segment_ids = 10 * number + (torch.arange(N) % 2)
    return b, number


DENSE = torch.arange(8)


def batch(labels=DENSE):
    b, number = _batch()
    b = per_token(b, torch.Tensor.clone)
    b.sequence_ids = labels[number]
    return b


def losses(b, objective, parts, denominator=None, plan=None) -> list[torch.Tensor]:
    """Losses, metrics and gradients of both forms over the parts."""
    hidden, weight, log_probs, entropy = (value.clone().requires_grad_() for value in (b.hidden, b.weight, b.log_probs, b.entropy))
    found = []
    for part in parts:
        some = per_token(b, lambda value: value[part])  # noqa: B023 - used at once
        keywords = keywords_of(some, objective) | {"objective": objective, "denominator": denominator}
        fused = linear_policy_loss(hidden[part], weight, some.token_ids, some.advantages, some.mask, plan=plan, **keywords)
        entropies = {"entropy": entropy[part]} if objective.needs_entropy else {}
        plain = policy_loss(log_probs[part], some.advantages, some.mask, **entropies, **keywords)
        (fused.loss + plain.loss).backward()
        found += [LossOutput(*(value.detach() for value in output)) for output in (fused, plain)]
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (hidden, weight, log_probs, entropy)]
    return [value for output in found for value in output] + gradients


def same_bits(found, want):
    assert len(found) == len(want)
    for one, other in zip(found, want):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(7.25), other.nan_to_num(7.25))


@pytest.mark.parametrize("name", POLICY)
def test_relabelling_changes_no_bit(name):
    objective = recipes.recipe(name).objective
    splits = [[slice(None)], PACKS] + ([CUTS] if objective.scope == Scope.TOKEN else [])
    want, b = batch(), batch(HUGE)
    den, other = (global_denominator(one.mask, objective=objective, sequence_ids=one.sequence_ids) for one in (want, b))
    assert den.total == other.total and den.per_sequence.sum() == other.per_sequence.sum()
    for denominator, parts in ((None, splits[0]), *(((den, other), split) for split in splits)):
        one, two = (None, None) if denominator is None else denominator
        same_bits(losses(b, objective, parts, two), losses(want, objective, parts, one))
    plans = [plan_tokens(some.mask, some.advantages, objective=objective, sequence_ids=some.sequence_ids) for some in (want, b)]
    assert torch.equal(plans[0].rows, plans[1].rows) and torch.equal(plans[0].boundaries, plans[1].boundaries)
    assert plans[0].n_backward == plans[1].n_backward
    same_bits(losses(b, objective, splits[0], other, plans[1]), losses(want, objective, splits[0], den, plans[0]))
    b.sequence_ids[~b.mask] = -1  # what stands at an untrained token cannot matter
    same_bits(losses(b, objective, splits[0]), losses(want, objective, splits[0]))


@pytest.mark.parametrize("name", [name for name in POLICY if recipes.recipe(name).objective.scope != Scope.BATCH])
def test_micro_batches_with_the_labels_of_the_batch_sum_to_one_call(name):
    objective, b = recipes.recipe(name).objective, batch(HUGE)
    den = global_denominator(b.mask, objective=objective, sequence_ids=b.sequence_ids)
    want = losses(b, objective, [slice(None)])
    for split in (PACKS, CUTS) if objective.scope == Scope.TOKEN else (PACKS,):
        found = losses(b, objective, split, den)
        count = 4 * len(split)
        assert error(sum(found[:count:4]), want[0]) < 1e-13 and error(sum(found[2:count:4]), want[2]) < 1e-13
        assert all(error(one, other) < 1e-13 for one, other in zip(found[count:], want[4:]))


@pytest.mark.parametrize("name", [name for name in POLICY if recipes.recipe(name).objective.scope != Scope.BATCH])
def test_micro_batches_of_rows_sum_to_one_call(name):
    """Rows are sequences: the denominator as it came, no labels, micro-batches of other rows than the first."""
    objective, b = recipes.recipe(name).objective, make_batch((6, 7), dtype=torch.float64)
    b.advantages[2] = 0
    den = global_denominator(b.mask, objective=objective)
    want = losses(b, objective, [slice(None)])
    found = losses(b, objective, [slice(0, 1), slice(1, 4), slice(4, None)], den)
    assert error(sum(found[:12:4]), want[0]) < 1e-13 and error(sum(found[2:12:4]), want[2]) < 1e-13
    assert all(error(one, other) < 1e-13 for one, other in zip(found[12:], want[4:]))


def test_a_row_matters_by_any_labels():
    mask, advantages = torch.ones(4, 2, dtype=torch.bool), torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 0]])
    for labels in ([0, 0, 1, 1], [10**15, 10**15, 3, 3], [3, 3, 10**15, 10**15]):
        ids = torch.tensor(labels)[:, None].expand(4, 2)
        assert rows_that_matter(mask, advantages, objective=GSPO, sequence_ids=ids).tolist() == [True, True, False, False]


def refused(match, function, *arguments, **keywords):
    """Refused where values are checked; elsewhere the loss and its gradient are NaN."""
    with pytest.raises(ValueError, match=match), validation("full"):
        function(*arguments, **keywords)
    with validation("metadata"):
        return function(*arguments, **keywords)


@pytest.mark.parametrize("objective", [GSPO, TOKEN], ids=["sequence", "token"])
@pytest.mark.parametrize("label", [-1, -5])
def test_a_trained_token_of_no_sequence_is_refused(objective, label):
    b = batch()
    place = int(b.mask.nonzero()[4])
    b.sequence_ids[place] = label
    match = rf"sequence_ids must be labels >= 0 at trained tokens, got {label} at \[{place}\]; give every token the label of its sequence"
    found = refused(match, losses, b, objective, [slice(None)])
    assert found[0].isnan() and found[2].isnan() and found[4].isnan().any() and found[6].isnan().any()
    found = refused("global_denominator: " + match, global_denominator, b.mask, objective=objective, sequence_ids=b.sequence_ids)
    assert found.total.isnan()
    with pytest.raises(ValueError, match="plan_tokens: " + match):
        plan_tokens(b.mask, b.advantages, objective=GSPO, sequence_ids=b.sequence_ids)
    b.sequence_ids[place] = batch().sequence_ids[place]  # the advice
    assert losses(b, objective, [slice(None)])[0].isfinite()


def test_a_label_that_the_denominator_did_not_count_is_refused():
    b = batch(HUGE)
    for den in (
        global_denominator(b.mask[:20], objective=TOKEN, sequence_ids=b.sequence_ids[:20]),
        Denominator(5.0, torch.tensor([9.0, 9.0])),
    ):
        match = r"sequence_ids must be labels that the denominator counted, got \d+, which it did not count, at \[\d+\]; give the loss and"
        found = refused(match, losses, b, TOKEN, [slice(None)], den)
        assert found[0].isnan() and found[4].isnan().any() and found[6].isnan().any()
    den = global_denominator(b.mask, objective=TOKEN, sequence_ids=b.sequence_ids)
    assert losses(b, TOKEN, [slice(None)], den)[0].isfinite()


def test_lengths_without_labels_are_those_of_dense_numbers():
    b, lengths = batch(), torch.zeros(8).index_add(0, batch().sequence_ids, batch().mask.float())
    want = losses(b, TOKEN, [slice(None)])
    same_bits(losses(b, TOKEN, [slice(None)], Denominator(8.0, lengths)), want)
    assert torch.equal(global_denominator(b.mask, objective=TOKEN, sequence_ids=b.sequence_ids).per_sequence[:8], lengths)


def test_rows_and_labels_do_not_stand_for_each_other():
    b = make_batch((3, 4), dtype=torch.float64)
    ids = torch.arange(12).view(3, 4) // 2
    rows, labels = global_denominator(b.mask, objective=GSPO), global_denominator(b.mask, objective=GSPO, sequence_ids=ids)
    for den, given, match in (
        (rows, ids, "sequence_ids must be None with a denominator that counted rows"),
        (labels, None, "sequence_ids must be given with a denominator that counted labelled sequences"),
    ):
        with pytest.raises(ValueError, match=match):
            policy_loss(b.log_probs, b.advantages, b.mask, objective=GSPO, sequence_ids=given, denominator=den)
    policy_loss(b.log_probs, b.advantages, b.mask, objective=GSPO, sequence_ids=ids, denominator=labels)
    policy_loss(b.log_probs, b.advantages, b.mask, objective=GSPO, denominator=rows)


def test_rows_in_another_order_than_they_were_counted_in_are_refused():
    b = make_batch((3, 4), dtype=torch.float64)
    b.mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    den, order = global_denominator(b.mask, objective=TOKEN), [2, 0, 1]
    call = lambda den, **more: policy_loss(  # noqa: E731
        b.log_probs[order], b.advantages[order], b.mask[order], objective=TOKEN, denominator=den, **more
    ).loss
    match = r"denominator.per_sequence must be the trained tokens of each whole sequence, got 2 where 4 .* at \[1, 0\]; count again after"
    assert refused(match, call, den).isnan()
    want = call(None)
    assert call(global_denominator(b.mask[order], objective=TOKEN)) == want  # the advice, both halves of it
    ids = torch.tensor([[5], [2], [9]]).expand(3, 4)
    assert call(global_denominator(b.mask, objective=TOKEN, sequence_ids=ids), sequence_ids=ids[order]) == want


def test_more_rows_than_were_counted_are_refused():
    b = make_batch((3, 4))
    den = global_denominator(b.mask[:2], objective=TOKEN)
    with pytest.raises(ValueError, match=r"denominator.per_sequence must be \(3,\), one length a row.*count the whole batch"):
        policy_loss(b.log_probs, b.advantages, b.mask, objective=TOKEN, denominator=den)


def test_what_a_denominator_is_counted_for():
    b = batch()
    with pytest.raises(TypeError, match=r"global_denominator: objective must be the objective of the loss, got None; pass objective="):
        global_denominator(b.mask)
    with pytest.raises(ValueError, match=r"aggregation must be the objective's"):
        global_denominator(b.mask, objective=TOKEN, aggregation=blocks.TokenMean())
    with pytest.raises(TypeError, match="objective must be a PolicyObjective"):
        global_denominator(b.mask, objective=blocks.TokenMean())
    vespo = recipes.recipe("vespo").objective  # a token mean whose ratio needs sequences
    with pytest.raises(ValueError, match=r"sequence_ids must be given as \(36,\) int64 for packed tokens"):
        global_denominator(b.mask, objective=vespo)
    found = global_denominator(b.mask, objective=vespo, sequence_ids=b.sequence_ids)
    assert found.total == b.mask.sum() and found.per_sequence.sum() == b.mask.sum()
    assert found.labels.diff().min() >= 0


def test_the_largest_label_and_an_empty_batch():
    labels = torch.tensor([2**63 - 1, 0, 1, 2, 3, 4, 5, 6])
    b = batch(labels)
    den = global_denominator(b.mask, objective=GSPO, sequence_ids=b.sequence_ids)
    same_bits(losses(b, GSPO, PACKS, den), losses(batch(), GSPO, PACKS, den._replace(labels=None, per_sequence=_first(batch()))))
    empty = per_token(b, lambda value: value[:0])
    den = global_denominator(empty.mask, objective=GSPO, sequence_ids=empty.sequence_ids)
    assert den.total == 1 and losses(empty, GSPO, [slice(None)], den)[0] == 0


def _first(b):
    return torch.zeros(8).index_add(0, b.sequence_ids, b.mask.float())
