"""A head whose columns lie on several ranks: two and four gloo processes against one with the whole head, the same bits on every rank."""

import pathlib

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from gigpo_fast.distributed import head_of_dtensor
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, linear_token_statistics
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceRatio
from tests.loss_helpers import change, keywords_of, make_batch, smallest_chunk
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, error, roundings

CUTS = {2: [13, 10], 4: [3, 9, 1, 10]}  # uneven, one column alone
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
SEQUENCE = PolicyObjective(SequenceRatio(), divergence=KLPenalty(0.1), aggregation=SequenceMeanTokenMean())
CASES = {
    "plain": (PolicyObjective(), torch.float64, {}),
    "full": (FULL, torch.float64, {}),
    "sequence in two passes": (SEQUENCE, torch.float64, {"chunks": True}),
    "padded": (FULL, torch.float64, {"vocab_size": 20}),
    "softcap": (FULL, torch.float64, {"softcap": 5.0, "logit_scale": 1.2}),
    "invariant": (FULL, torch.float64, {"invariant": True}),
    "float32": (FULL, torch.float32, {}),
    "bfloat16": (FULL, torch.bfloat16, {}),
    "large offset": (FULL, torch.float32, {"offset": 1e4}),
    "an impossible shard": (PolicyObjective(), torch.float64, {"impossible": slice(0, 3)}),
}


def data(name):
    objective, dtype, options = CASES[name]
    b = make_batch((3, 30), dtype=dtype)
    if "offset" in options:
        b.bias = b.bias + options["offset"]
    if "impossible" in options:
        b.bias[options["impossible"]] = float("-inf")
    b.token_ids = 3 + b.token_ids % 17  # real columns in every case
    return objective, b, options


def run(name, columns=slice(None), group_name=None, widest=23):
    """(results that every rank must have, gradients of its own columns)."""
    objective, b, options = data(name)
    hidden = b.hidden.clone().requires_grad_()
    weight, bias = b.weight[columns].clone().requires_grad_(), b.bias[columns].clone().requires_grad_()
    head = Head(weight, bias, options.get("logit_scale", 1.0), options.get("softcap"), options.get("vocab_size"), group_name)
    how = {
        "invariant": "invariant" in options,
        "chunk_bytes": 3 * smallest_chunk(change(b, weight=b.weight[:widest], token_ids=b.token_ids * 0)) // 2
        if options.get("chunks")
        else None,
    }
    out = linear_policy_loss(hidden, head, b.token_ids, b.advantages, b.mask, **keywords_of(b, objective), objective=objective, **how)
    out.loss.backward()
    shared, own = [out.loss.detach(), out.metrics, hidden.grad.clone()], [weight.grad.clone(), bias.grad.clone()]
    hidden.grad = weight.grad = bias.grad = None
    found = linear_token_log_probs(hidden, head, b.token_ids)
    ((found.log_probs * b.advantages).sum() + (found.entropy * b.old).sum()).backward()
    squared = linear_token_statistics(hidden, head, b.token_ids).sum_squared_probs
    return shared + [found.log_probs.detach(), found.entropy.detach(), squared, hidden.grad], own + [weight.grad, bias.grad]


def _rank(rank, ranks, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    cuts = CUTS[ranks]
    columns = slice(sum(cuts[:rank]), sum(cuts[: rank + 1]))
    name = torch.distributed.group.WORLD.group_name
    torch.save({case: run(case, columns, name, max(cuts)) for case in CASES}, f"{folder}/{ranks}-{rank}.pt")
    messages = []
    b = make_batch((2, 4))
    for head in (Head(b.weight[columns], vocab_size=5, group_name=name), Head(b.weight[columns], group_name="nobody")):
        with pytest.raises(ValueError) as caught:
            linear_token_log_probs(b.hidden, head, b.token_ids)
        messages.append(str(caught.value))
    torch.save(messages, f"{folder}/{ranks}-{rank}-messages.pt")
    torch.save(of_dtensor(), f"{folder}/{ranks}-{rank}-dtensor.pt")
    torch.distributed.barrier()  # no rank tears down while another still talks to it
    torch.distributed.destroy_process_group()


def of_dtensor():
    """Log-probs and gradients of a DTensor weight, sharded over its vocabulary and replicated; messages of other placements."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    b, found = make_batch((2, 4), dtype=torch.float64), []
    for placement in (Shard(0), Replicate()):
        weight, bias = (distribute_tensor(value, mesh, [placement]).requires_grad_() for value in (b.weight, b.bias))
        log_probs = linear_token_log_probs(b.hidden, head_of_dtensor(weight, bias), b.token_ids).log_probs
        log_probs.sum().backward()
        found += [log_probs.detach(), weight.grad.full_tensor(), bias.grad.full_tensor()]
    messages = []
    for weight in (distribute_tensor(b.weight, mesh, [Shard(1)]), DTensor.from_local(b.weight, mesh, [Partial()])):
        with pytest.raises(ValueError) as caught:
            head_of_dtensor(weight)
        messages.append(str(caught.value))
    with pytest.raises(TypeError) as caught:
        linear_token_log_probs(b.hidden, distribute_tensor(b.weight, mesh, [Shard(0)]), b.token_ids)
    return found, [*messages, str(caught.value)]


@pytest.fixture(scope="module", params=list(CUTS), ids=["two ranks", "four ranks"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(_rank, args=(request.param, str(folder)), nprocs=request.param)
    load = lambda name: torch.load(pathlib.Path(folder) / f"{request.param}-{name}.pt")  # noqa: E731
    every = range(request.param)
    return [load(rank) for rank in every], [load(f"{rank}-messages") for rank in every], [load(f"{rank}-dtensor") for rank in every]


@pytest.mark.parametrize("case", CASES)
def test_F49_ranks_agree_with_each_other_and_with_one_process(ranks, case):
    found = [rank[case] for rank in ranks[0]]
    for other in found[1:]:
        for got, want in zip(other[0], found[0][0]):
            assert_same_bits(case, got, want)
    shared, own = run(case)
    joined = found[0][0] + [torch.cat([rank[1][index] for rank in found]) for index in range(4)]
    names = (
        "loss",
        "metrics",
        "d hidden",
        "log_probs",
        "entropy",
        "squared",
        "d hidden of log_probs",
        "d weight",
        "d bias",
        "d weight 2",
        "d bias 2",
    )
    objective, dtype, _ = CASES[case]
    for name, got, want in zip(names, joined, shared + own):
        scale = max(1.0, float(want.double().nan_to_num(0).abs().max()))
        if name == "metrics":
            tolerance = 1e-5
        elif dtype == torch.float64:
            tolerance = 1e-13
        else:
            tolerance = 2.0**-20 if dtype == torch.float32 else 2.0**-7
        assert error(got, want) <= tolerance * scale, name


def test_a_large_offset_costs_the_log_probs_nothing(ranks):
    """Against float64: two roundings more than the whole head's at most."""
    objective, b, _ = data("large offset")
    log_p = torch.log_softmax(b.hidden.double() @ b.weight.double().T + b.bias.double(), -1)
    exact = log_p.gather(-1, b.token_ids[..., None])[..., 0]
    whole = run("large offset")[0][3]
    assert_no_worse_than(
        "log_probs", ranks[0][0]["large offset"][0][3], exact, whole, factor=VALUE, floor=roundings(exact, torch.float32, 4)
    )
    assert GRADIENT > VALUE and float(exact.abs().max()) < 100


def test_bad_heads_are_named_on_every_rank(ranks):
    for few, nobody in ranks[1]:
        assert "head.vocab_size must be such that every rank has a real column, got 5, which leaves none to rank" in few
        assert "head.group_name must be the name of a process group, got 'nobody'; pass process_group.group_name" in nobody


def test_a_dtensor_head(ranks):
    b = make_batch((2, 4), dtype=torch.float64)
    weight, bias = b.weight.requires_grad_(), b.bias.requires_grad_()
    log_probs = linear_token_log_probs(b.hidden, Head(weight, bias), b.token_ids).log_probs
    log_probs.sum().backward()
    for found, messages in ranks[2]:
        for got, want in zip(found, [log_probs.detach(), weight.grad, bias.grad] * 2):
            assert error(got, want) < 1e-13
        assert (
            "head_of_dtensor: weight must be sharded over its vocabulary (dimension 0) or replicated, got" in messages[0]
            and "(dim=1)" in messages[0]
        )
        assert "Partial" in messages[1]
        assert "head.weight must be a plain tensor, got a DTensor" in messages[2] and "distributed.head_of_dtensor" in messages[2]


def test_a_head_that_is_no_dtensor():
    with pytest.raises(TypeError, match="head_of_dtensor: weight must be a DTensor, got .3, 4. float32; pass Head"):
        head_of_dtensor(torch.ones(3, 4))


def test_without_torch_distributed():
    b = make_batch((2, 4))
    with pytest.raises(ValueError, match="head.group_name must be None without torch.distributed, got '0'; call"):
        linear_token_log_probs(b.hidden, Head(b.weight, group_name="0"), b.token_ids)
