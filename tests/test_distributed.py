"""Denominators over ranks: two gloo processes with half a batch each sum to the loss and gradient of one process with all of it."""

import pathlib

import pytest
import torch

from gigpo_fast import objective as blocks
from gigpo_fast.distributed import Denominator, global_denominator
from gigpo_fast.loss import linear_policy_loss

B, T, H, V, RANKS = 4, 6, 8, 19, 2
AGGREGATIONS = {
    "token_mean": blocks.TokenMean(),
    "token_sum": blocks.TokenSum(),
    "sequence_token_sum": blocks.SequenceMeanTokenSum(),
    "sequence_token_mean": blocks.SequenceMeanTokenMean(),
    "sequence_norm": blocks.SequenceMeanTokenSumNorm(10),
}


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (
        torch.randn(B, T, H, generator=generator, dtype=torch.float64),
        torch.randn(V, H, generator=generator, dtype=torch.float64),
    )
    token_ids = torch.randint(0, V, (B, T), generator=generator)
    advantages, old = torch.randn(B, T, generator=generator), -3 + torch.randn(B, T, generator=generator)
    mask = torch.rand(B, T, generator=generator) > 0.4
    mask[1] = False  # a rank with an empty row
    return hidden, weight.requires_grad_(), token_ids, advantages, mask, old


def loss_of(rows: slice, name: str, denominator: Denominator | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight, token_ids, advantages, mask, old = batch()
    objective = blocks.PolicyObjective(aggregation=AGGREGATIONS[name])
    output = linear_policy_loss(
        hidden[rows],
        weight,
        token_ids[rows],
        advantages[rows],
        mask[rows],
        old_log_probs=old[rows],
        objective=objective,
        denominator=denominator,
    )
    (gradient,) = torch.autograd.grad(output.loss, weight)
    return output.loss.detach(), gradient, output.metrics


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    rows = slice(rank * B // RANKS, (rank + 1) * B // RANKS)
    found = {}
    for name, aggregation in AGGREGATIONS.items():
        denominator = global_denominator(batch()[4][rows], aggregation=aggregation)
        found[name] = (*loss_of(rows, name, Denominator(denominator.total)), denominator.total)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # no rank tears down while another still talks to it
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(pathlib.Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_two_ranks_sum_to_one_process(ranks, name):
    loss, gradient, metrics = loss_of(slice(None), name, None)
    torch.testing.assert_close(sum(found[name][0] for found in ranks), loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sum(found[name][1] for found in ranks), gradient, rtol=1e-12, atol=1e-14)
    assert ranks[0][name][3] == ranks[1][name][3]


def test_without_a_process_group_it_counts_this_batch():
    mask = batch()[4]
    assert global_denominator(mask, aggregation=blocks.TokenMean()).total == mask.sum()
    found = global_denominator(mask, aggregation=blocks.SequenceMeanTokenMean())
    assert found.total == 3 and found.per_sequence.tolist() == mask.sum(1).tolist()


def test_a_float_mask_is_refused():
    with pytest.raises(TypeError, match=r"global_denominator: mask must be .* bool .* got \(2, 2\) float32; use mask.bool\(\)"):
        global_denominator(torch.ones(2, 2), aggregation=blocks.TokenMean())
