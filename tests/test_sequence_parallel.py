"""Sequences cut over ranks (sequence or context parallelism): two and four gloo processes sum to the loss and gradients of one."""

import pathlib

import pytest
import torch

from gigpo_fast import objective as blocks
from gigpo_fast import validation
from gigpo_fast.distributed import global_denominator
from gigpo_fast.head import Head
from gigpo_fast.loss import LossOutput, linear_policy_loss, plan_tokens, policy_loss
from tests.loss_helpers import keywords_of, make_batch
from tests.tolerance import error

N = 90
CUTS = {2: [0, 37, N], 4: [0, 5, 60, 60, N]}  # uneven; the third of four ranks has no token at all
OBJECTIVES = {
    "token": blocks.PolicyObjective(divergence=blocks.KLPenalty(0.1), entropy_bonus=blocks.EntropyBonus(0.02)),
    "sequence": blocks.PolicyObjective(
        blocks.SequenceRatio(), blocks.Clip(0.1, 0.3, dual=2.0), blocks.KLPenalty(0.1), aggregation=blocks.SequenceMeanTokenMean()
    ),
    "sequence, token variant": blocks.PolicyObjective(blocks.SequenceRatio(stop_gradient_mean=True), blocks.Clip(0.1, 0.3)),
    "token sums of sequences": blocks.PolicyObjective(blocks.SequenceRatio(), aggregation=blocks.SequenceMeanTokenSum()),
}


def batch():
    """Five sequences of packed tokens; one has no advantage, one has an advantage on the first rank only."""
    b = make_batch((N,), dtype=torch.float64, trained=0.9)
    number = torch.tensor([0] * 20 + [1] * 30 + [2] * 4 + [3] * 26 + [4] * 10)
    b.sequence_ids = torch.tensor([7, 10**15, 3, 0, 12])[number]  # any labels, the same on all ranks
    b.advantages[number == 2] = 0
    b.advantages[38:50] = 0
    return b


def run(rows, objective, denominator, *, on_policy=False):
    """Summed results of both forms of the loss on some rows."""
    b = batch()
    for name, value in vars(b).items():
        if value.shape[:1] == (N,):
            setattr(b, name, value[rows])
    hidden, weight, bias = (getattr(b, name).clone().requires_grad_() for name in ("hidden", "weight", "bias"))
    keywords = keywords_of(b, objective, on_policy=on_policy) | {"objective": objective, "denominator": denominator}
    fused = linear_policy_loss(hidden, Head(weight, bias), b.token_ids, b.advantages, b.mask, **keywords)
    fused.loss.backward()
    log_probs, entropy = b.log_probs.clone().requires_grad_(), b.entropy.clone().requires_grad_()
    plain = policy_loss(log_probs, b.advantages, b.mask, entropy=entropy, **keywords)
    plain.loss.backward()
    entropy_grad = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    summed = [fused.loss.detach(), weight.grad, bias.grad, plain.loss.detach()]
    return summed, [hidden.grad, log_probs.grad, entropy_grad], LossOutput(fused.loss.detach(), fused.metrics)


def _rank(rank, ranks, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    group, rows, b = torch.distributed.group.WORLD, slice(*CUTS[ranks][rank : rank + 2]), batch()
    found = {}
    for name, objective in OBJECTIVES.items():
        denominator = global_denominator(
            b.mask[rows], aggregation=objective.aggregation, sequence_ids=b.sequence_ids[rows], sequence_group=group
        )
        found[name] = [run(rows, objective, denominator, on_policy=on_policy) for on_policy in (False, True)]
    plan = plan_tokens(b.mask[rows], b.advantages[rows], objective=OBJECTIVES["sequence"], sequence_ids=b.sequence_ids[rows])
    with pytest.raises(ValueError, match="plan must be None where sequences are cut over ranks"):
        linear_policy_loss(
            b.hidden[rows], b.weight, b.token_ids[rows], b.advantages[rows], b.mask[rows], objective=OBJECTIVES["sequence"], plan=plan,
            sequence_ids=b.sequence_ids[rows], ref_log_probs=b.ref[rows], denominator=denominator,
        )  # fmt: skip
    mask = torch.tensor([[True] * 3, [rank == 1] * 3, [False] * 3])
    found["rows"] = global_denominator(mask, aggregation=blocks.SequenceMeanTokenMean(), sequence_group=group)
    torch.save(found, f"{folder}/{ranks}-{rank}.pt")
    torch.distributed.barrier()  # no rank tears down while another still talks to it
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=list(CUTS), ids=["two ranks", "four ranks"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(_rank, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(pathlib.Path(folder) / f"{request.param}-{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_sequences_sum_to_one_process(ranks, name, on_policy):
    found, objective = [rank[name][on_policy] for rank in ranks], OBJECTIVES[name]
    b = batch()
    denominator = global_denominator(b.mask, objective=objective, sequence_ids=b.sequence_ids)
    summed, own, whole = run(slice(0, N), objective, denominator, on_policy=on_policy)
    for index, want in enumerate(summed):
        assert error(sum(rank[0][index] for rank in found), want) < 1e-14
    for index, want in enumerate(own):
        assert error(torch.cat([rank[1][index] for rank in found]), want) < 1e-14
    merged, expected = LossOutput.merge([rank[2] for rank in found]).metrics_as_floats(), whole.metrics_as_floats()
    two_passes = merged.pop("two_pass_fraction")
    assert (two_passes > 0) == (objective.scope == blocks.Scope.SEQUENCE)
    assert merged == {key: pytest.approx(expected[key], rel=1e-5, abs=1e-6) for key in merged}


def test_rows_cut_over_ranks_need_no_numbers(ranks):
    """A (B, T) batch cut along T: the row is the sequence; the last row is trained nowhere."""
    assert ranks[0]["rows"].total == 2 and ranks[0]["rows"].per_sequence.tolist() == [len(ranks) * 3.0, 3.0, 0.0]


def test_part_of_a_sequence_that_is_pooled_is_refused():
    """Without the group no rank can pool a sequence of which others have a part: refused, and NaN where values are not checked."""
    objective, b = OBJECTIVES["sequence"], batch()
    whole = global_denominator(b.mask, objective=objective, sequence_ids=b.sequence_ids)
    with pytest.raises(ValueError, match=r"the batch must be of whole sequences .* got \d+ of \d+ trained .*; keep a sequence in one micro-batch"):
        run(slice(*CUTS[2][:2]), objective, whole)
    with validation("metadata"):
        summed, own, _ = run(slice(*CUTS[2][:2]), objective, whole)
    assert summed[0].isnan() and own[1].isnan().any()
    summed, *_ = run(slice(0, 50), objective, whole)  # the advice: micro-batches of whole sequences
    rest, *_ = run(slice(50, N), objective, whole)
    want, *_ = run(slice(0, N), objective, whole)
    assert all(error(one + other, both) < 1e-14 for one, other, both in zip(summed, rest, want))
