"""FSDP2 and a vocabulary-parallel head on two CUDA devices with NCCL: what one process on the CPU computes."""

import pathlib

import pytest
import torch
import torch.distributed as dist

from gigpo_fast.distributed import gather_rows
from gigpo_fast.head import Head
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceRatio
from tests.fsdp_cases import CASES, train
from tests.gpu import DEVICE, ON_GPU, marks
from tests.loss_helpers import change, keywords_of, make_batch
from tests.tolerance import error

pytestmark = [*marks, pytest.mark.skipif(ON_GPU and torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SHARDED = (
    "resharded after forward",
    "tied, one group with the embedding",
    "accumulation without reduction",
    "a rank that trains nothing",
    "DDP",
)
CUTS = [0, 10, 23]
OBJECTIVES = {
    "token": PolicyObjective(surrogate=Clip(0.1, 0.3), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02)),
    "sequence": PolicyObjective(SequenceRatio(), divergence=KLPenalty(0.1), aggregation=SequenceMeanTokenMean()),
}


def columns(name: str, device="cpu", rank=None) -> list[torch.Tensor]:
    """Loss, d hidden and d weight of a head of which each rank has some columns; the hidden states come from both ranks."""
    b, objective = make_batch((6, 30), dtype=torch.float64), OBJECTIVES[name]
    b = change(b, **{key: value.to(device) for key, value in vars(b).items()})
    own, rows = (slice(0, 23), slice(0, 6)) if rank is None else (slice(*CUTS[rank : rank + 2]), slice(*(0, 2, 6)[rank : rank + 2]))
    weight, local = b.weight[own].clone().requires_grad_(), b.hidden[rows].clone().requires_grad_()
    hidden = local if rank is None else gather_rows(local, sum_gradients=False)
    head = Head(weight, group_name=None if rank is None else dist.group.WORLD.group_name)
    out = linear_policy_loss(hidden, head, b.token_ids, b.advantages, b.mask, **keywords_of(b, objective), objective=objective)
    out.loss.backward()
    return [value.detach().cpu() for value in (out.loss, local.grad, weight.grad)]


def _rank(rank: int, folder: str) -> None:
    device = torch.device("cuda", rank) if ON_GPU else DEVICE
    if ON_GPU:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if ON_GPU else "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sharded = {name: train(CASES[name], ranks=2, device=device) for name in SHARDED}
    torch.save((sharded, {name: columns(name, device, rank) for name in OBJECTIVES}), f"{folder}/{rank}.pt")
    dist.barrier()  # no rank tears down while another still talks to it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nccl")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=2)
    return [torch.load(pathlib.Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters(ranks, name):
    wanted = train(CASES[name])
    for sharded, _ in ranks:
        for got, want in zip(sharded[name], wanted, strict=True):
            assert error(got["loss"], want["loss"]) < 1e-12
            for parameter, gradient in want["gradients"].items():
                assert error(got["gradients"][parameter], gradient) < 1e-12, parameter


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharded_columns_of_gathered_rows(ranks, name):
    loss, d_hidden, d_weight = columns(name)
    found = [rank[1][name] for rank in ranks]
    assert all(error(one[0], loss) < 1e-12 for one in found)
    assert error(torch.cat([one[1] for one in found]), d_hidden) < 1e-12
    assert error(torch.cat([one[2] for one in found]), d_weight) < 1e-12
