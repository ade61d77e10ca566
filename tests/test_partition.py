"""Any split of a batch into micro-batches and ranks sums to the loss, metrics and gradients of one call; also where sequences or columns are cut too."""

import functools
import itertools
import pathlib
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from gigpo_fast import objective as blocks
from gigpo_fast.distributed import Denominator, global_denominator
from gigpo_fast.head import Head
from gigpo_fast.loss import LossOutput, linear_policy_loss, policy_loss
from tests.loss_helpers import keywords_of, make_batch, per_token
from tests.tolerance import error

B, T, H, V = 9, 7, 8, 23
FULL = {"surrogate": blocks.Clip(0.1, 0.3, dual=2.0), "divergence": blocks.KLPenalty(0.1), "entropy_bonus": blocks.EntropyBonus(0.02)}
OBJECTIVES = {
    "token ratio, token mean": blocks.PolicyObjective(**FULL, aggregation=blocks.TokenMean()),
    "token ratio, sequence token mean": blocks.PolicyObjective(**FULL, aggregation=blocks.SequenceMeanTokenMean()),
    "no ratio, token sum": blocks.PolicyObjective(blocks.NoRatio(), blocks.Reinforce(), aggregation=blocks.TokenSum()),
    "sequence ratio, sequence token sum": blocks.PolicyObjective(
        blocks.SequenceRatio(), **FULL, aggregation=blocks.SequenceMeanTokenSum()
    ),
    "sequence ratio's token variant, token mean": blocks.PolicyObjective(
        blocks.SequenceRatio(stop_gradient_mean=True), blocks.Clip(0.1, 0.3), aggregation=blocks.TokenMean()
    ),
    "segment ratio, sequence token mean": blocks.PolicyObjective(
        blocks.SegmentRatio(), blocks.Clip(0.1, 0.3), aggregation=blocks.SequenceMeanTokenMean()
    ),
    "segment ratio, constant length": blocks.PolicyObjective(blocks.SegmentRatio(), **FULL, aggregation=blocks.SequenceMeanTokenSumNorm(10)),
}  # fmt: skip
RANKS, MICRO = (1, 2, 4), (1, 2, 4)
CUTS = {1: [0, B], 2: [0, 4, B], 4: [0, 3, 3, 4, B]}  # rows of each rank; the second of four has none
PACKED = "packed, micro-batches cut inside of sequences"
GRIDS = {
    "data x sequence": ("data", "sequence"),
    "data x vocabulary": ("data", "vocabulary"),
    "sequence x vocabulary": ("sequence", "vocabulary"),
}
ON_GRIDS = ["token ratio, sequence token mean", "sequence ratio, sequence token sum", "sequence ratio's token variant, token mean"]


def batch(packed: bool = False) -> SimpleNamespace:
    """Rows of uneven length, of which the sixth is not trained and the third has no advantage; packed: the same tokens in one line."""
    b = make_batch((B, T), hidden=H, vocabulary=V, dtype=torch.float64)
    b.mask &= torch.arange(T) < torch.tensor([[7], [2], [5], [1], [7], [3], [6], [4], [5]])
    b.mask[:, 0] = True
    b.mask[5] = False
    b.advantages[2] = 0
    if packed:
        b.sequence_ids = torch.arange(B)[:, None].expand(B, T)
        b = per_token(b, lambda value: value.flatten(0, 1))
    return b


def micro_batches(items: Tensor, count: int) -> list[Tensor]:
    """Uneven parts of a rank's rows; of two or more the first is empty."""
    if count == 1:
        return [items]
    bounds = [0, 0, *(len(items) * part * part // (count - 1) ** 2 for part in range(1, count - 1)), len(items)]
    return [items[start:stop] for start, stop in itertools.pairwise(bounds)]


def step(b: SimpleNamespace, parts: list[Tensor], objective, denominator, columns=slice(None), group_name=None) -> dict:
    """Losses, metrics and gradients of a rank: those of its micro-batches, added up. Gradients of tokens lie where the tokens do."""
    weight, bias = b.weight[columns].clone().requires_grad_(), b.bias[columns].clone().requires_grad_()
    hidden, log_probs, entropy = (value.clone().requires_grad_() for value in (b.hidden, b.log_probs, b.entropy))
    fused, plain = [], []
    for part in parts:
        some = per_token(b, lambda value: value[part])  # noqa: B023 - used at once
        keywords = keywords_of(some, objective) | {"objective": objective, "denominator": denominator}
        out = linear_policy_loss(
            hidden[part], Head(weight, bias, group_name=group_name), some.token_ids, some.advantages, some.mask, **keywords
        )
        out.loss.backward()
        fused.append(LossOutput(out.loss.detach(), out.metrics))
        entropies = {"entropy": entropy[part]} if objective.needs_entropy else {}
        out = policy_loss(log_probs[part], some.advantages, some.mask, **entropies, **keywords)
        out.loss.backward()
        plain.append(LossOutput(out.loss.detach(), out.metrics))
    gradients = {"hidden": hidden, "weight": weight, "bias": bias, "log_probs": log_probs, "entropy": entropy}
    return {
        "fused": LossOutput.merge(fused),
        "plain": LossOutput.merge(plain),
        "gradients": {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in gradients.items()},
    }


def summed(found: dict, process_group) -> dict:
    """What a rank found, over the ranks that have other tokens."""
    if not dist.is_initialized():
        return found
    for gradient in found["gradients"].values():
        dist.all_reduce(gradient, group=process_group)
    for form in ("fused", "plain"):
        every = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(every, tuple(found[form]), group=process_group)
        found[form] = LossOutput.merge([LossOutput(*one) for one in every])
    return found


def total_of(b: SimpleNamespace, items: Tensor, objective, **groups) -> Denominator:
    """The denominator as a rank counts it."""
    ids = getattr(b, "sequence_ids", None)
    keywords = {} if ids is None else {"sequence_ids": ids[items]}
    return global_denominator(b.mask[items], objective=objective, **keywords, **groups)


def by_ranks_and_micro_batches(rank: int, ranks: int) -> dict:
    found = {}
    for name in (*OBJECTIVES, PACKED):
        b, objective = batch(name == PACKED), OBJECTIVES["token ratio, sequence token mean" if name == PACKED else name]
        items = torch.arange(len(b.mask)).split(
            [T * (stop - start) if name == PACKED else stop - start for start, stop in itertools.pairwise(CUTS[ranks])]
        )[rank]
        total = total_of(b, items, objective)
        for micro in MICRO:
            found[name, micro] = summed(step(b, micro_batches(items, micro), objective, total), None)
    return found


def on_grid(kind: str) -> dict:
    """Two kinds of parallelism at once on a 2 x 2 mesh, with two micro-batches where the data is cut."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=GRIDS[kind])
    places = {name: grid[name].get_local_rank() for name in GRIDS[kind]}
    groups = {name: grid[name].get_group() for name in GRIDS[kind]}
    b, found = batch(packed=True), {}
    items = torch.arange(B * T)
    if "data" in places:
        items = items.split([4 * T, 5 * T])[places["data"]]
    if "sequence" in places:
        items = items[(items % T < 3) == (places["sequence"] == 0)]
    columns, group_name = slice(None), None
    if "vocabulary" in places:
        columns, group_name = slice(*((0, 10), (10, V))[places["vocabulary"]]), groups["vocabulary"].group_name
    tokens = None if "vocabulary" not in places else groups[GRIDS[kind][0]]  # ranks that differ in tokens
    counted = {"process_group": tokens} | ({"sequence_group": groups["sequence"]} if "sequence" in groups else {})
    for name in ON_GRIDS:
        objective = OBJECTIVES[name]
        total = total_of(b, items, objective, **counted)
        sequences = b.sequence_ids[items]
        parts = [items[sequences % 2 == one] for one in (0, 1)]  # whole sequences, on every rank that has a part of them
        result = summed(step(b, parts, objective, total, columns, group_name), tokens)
        if group_name is not None:
            for gradient in ("weight", "bias"):
                every = [None] * 2
                dist.all_gather_object(every, result["gradients"][gradient], group=groups["vocabulary"])
                result["gradients"][gradient] = torch.cat(every)
        found[name] = result
    return found


def _rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    grids = {kind: on_grid(kind) for kind in GRIDS} if ranks == 4 else {}
    torch.save((by_ranks_and_micro_batches(rank, ranks), grids), f"{folder}/{ranks}-{rank}.pt")
    dist.barrier()  # no rank tears down while another still talks to it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def spawned(tmp_path_factory):
    """What every rank of so many found, run once; one rank is this process, without torch.distributed."""

    @functools.cache
    def run(ranks: int) -> list[tuple[dict, dict]]:
        if ranks == 1:
            return [(by_ranks_and_micro_batches(0, 1), {})]
        folder = tmp_path_factory.mktemp("gloo")
        torch.multiprocessing.spawn(_rank, args=(ranks, str(folder)), nprocs=ranks)
        return [torch.load(pathlib.Path(folder) / f"{ranks}-{rank}.pt", weights_only=False) for rank in range(ranks)]

    return run


@functools.cache
def one_call(name: str, packed: bool) -> dict:
    b = batch(packed)
    return step(b, [torch.arange(len(b.mask))], OBJECTIVES[name], None)


def assert_same(got: dict, want: dict, *, but: tuple[str, ...] = ()) -> None:
    for form in ("fused", "plain"):
        assert error(got[form].loss, want[form].loss) < 1e-14 * max(1.0, float(want[form].loss.abs()))
        expected = want[form].metrics_as_floats()
        assert expected["n_active"] > 20 and expected["denominator"] >= 1
        found = got[form].metrics_as_floats()
        assert found == {key: pytest.approx(found[key] if key in but else value, rel=1e-5, abs=1e-6) for key, value in expected.items()}
    for name, gradient in want["gradients"].items():
        assert error(got["gradients"][name], gradient) < 1e-14, name


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("micro", MICRO)
@pytest.mark.parametrize("name", [*OBJECTIVES, PACKED])
def test_any_split_sums_to_one_call(spawned, name, micro, ranks):
    want = one_call("token ratio, sequence token mean", True) if name == PACKED else one_call(name, False)
    assert float(want["gradients"]["weight"].abs().max()) > 1e-3
    for found, _ in spawned(ranks):
        assert_same(found[name, micro], want)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", ON_GRIDS)
def test_two_kinds_of_parallelism_at_once(spawned, name, kind):
    for _, grids in spawned(4):
        assert_same(grids[kind][name], one_call(name, True), but=("two_pass_fraction",))


def test_without_the_common_denominator_the_sum_is_another():
    """The control: micro-batches that count themselves do not sum to one call."""
    b, objective = batch(), OBJECTIVES["token ratio, token mean"]
    want = one_call("token ratio, token mean", False)
    wrong = step(b, micro_batches(torch.arange(B), 4), objective, None)
    assert error(wrong["fused"].loss, want["fused"].loss) > 1e-2


def test_the_splits_have_an_empty_micro_batch_and_an_empty_rank():
    parts = micro_batches(torch.arange(B), 4)
    assert [len(part) for part in parts] == [0, 1, 3, 5] and 3 in CUTS[4][1:3]
    assert len({int(count) for count in batch().mask.sum(1)}) > 3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_that_trains_nothing_anywhere_is_zero(name):
    b = batch()
    b.mask[:] = False
    found = step(b, micro_batches(torch.arange(B), 4), OBJECTIVES[name], total_of(b, torch.arange(B), OBJECTIVES[name]))
    assert found["fused"].loss == found["plain"].loss == 0 and found["fused"].metrics_as_floats()["denominator"] == 1
    assert not any(gradient.any() for gradient in found["gradients"].values())
