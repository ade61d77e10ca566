"""The fused head on a GPU: against plain torch in float64, repeatable, without waiting, in a CUDA graph, within its memory."""

import threading

import pytest
import torch

from gigpo_fast import validation
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, plan_tokens, policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceRatio
from gigpo_fast.ops import passes
from tests import gpu
from tests.gpu import DEVICE, ON_GPU, randint, randn
from tests.test_scaling import assert_one_rounding
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, error, roundings

pytestmark = gpu.marks
B, T, H, V = (8, 64, 512, 32000) if ON_GPU else (4, 16, 32, 1003)
CLIP = PolicyObjective(surrogate=Clip(0.2, 0.28, dual=3.0), divergence=KLPenalty(0.02), entropy_bonus=EntropyBonus(0.01))  # the twin's
SEQUENCE = PolicyObjective(SequenceRatio(), divergence=KLPenalty(0.02), aggregation=SequenceMeanTokenMean())
PLAIN = PolicyObjective()
OBJECTIVES = pytest.mark.parametrize("objective", [PLAIN, CLIP, SEQUENCE], ids=["plain", "clip", "sequence"])


def batch(dtype):
    """Two turns a row are trained, a quarter of the rows have no advantage, log-probs lie around the policy's."""
    hidden, weight, bias = (
        randn(B, T, H, dtype=dtype),
        randn(V, H, dtype=dtype, seed=1, scale=H**-0.5),
        randn(V, dtype=dtype, seed=2, scale=0.1),
    )
    ids, mask = randint(V, B, T), torch.zeros(B, T, dtype=torch.bool, device=DEVICE)
    mask[:, T // 8 : T // 3], mask[:, T // 2 : 3 * T // 4] = True, True
    advantages = randn(B, 1, seed=3).expand(B, T).contiguous()
    advantages[: B // 4] = 0
    with torch.no_grad():
        near = token_log_probs(hidden.float() @ weight.float().T + bias.float(), ids).log_probs
    old, ref = near + 0.3 * randn(B, T, seed=4), near + 0.3 * randn(B, T, seed=5)
    return hidden, weight, bias, ids, advantages, mask, old, ref


def keywords_of(objective, old, ref):
    return {"objective": objective, "old_log_probs": old} | ({"ref_log_probs": ref} if objective.needs_reference else {})


def fused(objective, data, **keywords):
    *leaves, ids, advantages, mask, old, ref = data
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = linear_policy_loss(leaves[0], Head(*leaves[1:]), ids, advantages, mask, **keywords_of(objective, old, ref), **keywords)
    out.loss.backward()
    return [out.loss.detach(), *(leaf.grad for leaf in leaves)]


def plain(objective, data, dtype):
    """Plain torch: all logits in `dtype`, the objective's formula on top."""
    *leaves, ids, advantages, mask, old, ref = data
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    log_p = torch.log_softmax(logits.double() if dtype == torch.float64 else logits.float(), -1)
    log_probs, entropy = log_p.gather(-1, ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    wide = lambda value: value.to(log_p.dtype)  # noqa: E731
    entropy = entropy if objective.needs_entropy else None
    out = policy_loss(log_probs, wide(advantages), mask, entropy=entropy, **keywords_of(objective, wide(old), wide(ref)))
    out.loss.backward()
    return [out.loss.detach(), *(leaf.grad for leaf in leaves)]


@OBJECTIVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("chunks", ["one", "many"])
def test_value_and_gradients(objective, dtype, chunks):
    data = batch(dtype)
    least = (128 if ON_GPU else 24) * passes._bytes_per_row(data[1]) + (8192 * H * 4 if not ON_GPU else 0)
    got = fused(objective, data, chunk_bytes=None if chunks == "one" else least)
    exact, same = plain(objective, data, torch.float64), plain(objective, data, dtype)
    for name, factor, value, oracle, torchs in zip(("loss", "hidden", "weight", "bias"), (VALUE, *[GRADIENT] * 3), got, exact, same):
        assert_no_worse_than(name, value, oracle, torchs, factor=factor, floor=roundings(oracle, value.dtype, 4))


@OBJECTIVES
@pytest.mark.parametrize("invariant", [False, True])
def test_fifty_runs_give_the_same_bits(objective, invariant):
    data = batch(torch.bfloat16)
    first = fused(objective, data, invariant=invariant)
    for _ in range(50 if ON_GPU else 3):
        for got, want in zip(fused(objective, data, invariant=invariant), first):
            assert_same_bits("repeat", got, want)


def test_invariant_log_probs_do_not_depend_on_other_rows():
    hidden, weight, _, ids, *_ = batch(torch.bfloat16)
    hidden, ids = hidden.reshape(-1, H), ids.reshape(-1)
    rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[: len(ids) // 3].to(DEVICE)
    want = linear_token_log_probs(hidden, weight, ids, invariant=True)
    got = linear_token_log_probs(hidden[rows], weight, ids[rows], invariant=True)
    assert_same_bits("log_probs", got.log_probs, want.log_probs[rows])
    assert_same_bits("entropy", got.entropy, want.entropy[rows])


@gpu.real_gpu
@OBJECTIVES
def test_with_a_plan_nothing_waits_and_a_cuda_graph_replays_it(objective):
    hidden, weight, bias, ids, advantages, mask, old, ref = batch(torch.bfloat16)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    plan = plan_tokens(mask, advantages, objective=objective)

    def step():
        hidden.grad = weight.grad = None
        out = linear_policy_loss(hidden, weight, ids, advantages, mask, plan=plan, **keywords_of(objective, old, ref))
        out.loss.backward()
        return out.loss.detach()

    with validation("metadata"):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            want = [step(), hidden.grad, weight.grad]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        held = [loss, hidden.grad, weight.grad]
        for _ in range(2):
            graph.replay()
            for got, expected in zip(held, want):
                assert_same_bits("replay", got, expected)


@gpu.real_gpu
def test_peak_memory_keeps_the_stated_formula():
    hidden, weight, _, ids, advantages, mask, old, _ = batch(torch.bfloat16)
    hidden, weight, budget = hidden.requires_grad_(), weight.requires_grad_(), 64 << 20
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = linear_policy_loss(hidden, weight, ids, advantages, mask, old_log_probs=old, objective=PLAIN, chunk_bytes=budget).loss
    formula = budget + hidden.numel() * 2 + weight.numel() * 4 + weight.numel() * 2 + (4 << 20)
    assert torch.cuda.max_memory_allocated() - before <= formula
    loss.backward()


@gpu.real_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_in_two_threads():
    data, results = batch(torch.bfloat16), {}

    def work(number):
        results[number] = [value.cpu() for value in fused(CLIP, [value.to(f"cuda:{number}") for value in data])]

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in zip(results[0], results[1]):
        assert_same_bits("device", first, second)


def test_one_graph_under_inductor():
    hidden, weight, _, ids, advantages, mask, old, _ = batch(torch.bfloat16)

    def step(hidden, weight):
        return linear_policy_loss(hidden, weight, ids, advantages, mask, old_log_probs=old, objective=PLAIN).loss

    results = []
    for function in (step, torch.compile(step, fullgraph=True, dynamic=True, backend="inductor" if ON_GPU else "aot_eager")):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(x, w)
        loss.backward()
        results.append([loss.detach(), x.grad, w.grad])
    for want, got in zip(*results):
        assert error(got, want) <= 2**-7 * float(want.abs().max())


def test_autocast_with_a_float32_master_weight():
    hidden, weight, _, ids, advantages, mask, old, _ = batch(torch.float32)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = linear_policy_loss(hidden, weight, ids, advantages, mask, old_log_probs=old, objective=PLAIN).loss
    loss.backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    low = linear_policy_loss(hidden.bfloat16(), weight.bfloat16(), ids, advantages, mask, old_log_probs=old, objective=PLAIN).loss
    assert_same_bits("loss", loss.detach(), low.detach())


@pytest.mark.parametrize("upstream", [1.0, 1 / 3])
def test_the_upstream_scalar_is_applied_in_float32(upstream):
    """A GPU's own product of a bfloat16 tensor and a 0-dim scalar rounds the scalar first, which every gradient would carry on."""
    hidden, weight, _, ids, advantages, mask, old, _ = batch(torch.bfloat16)
    found = []
    for scalar in (1.0, upstream):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        (scalar * linear_policy_loss(*leaves, ids, advantages, mask, old_log_probs=old, objective=PLAIN).loss).backward()
        found.append([leaf.grad for leaf in leaves])
    for whole, scaled in zip(*found):
        assert_one_rounding(scaled, whole, torch.tensor(upstream, device=DEVICE))
