"""Rows of all ranks: gathered with their gradients, as many on each rank as on the others, whole for the statistics of groups."""

import functools
import pathlib

import pytest
import torch
import torch.distributed as dist

from gigpo_fast import advantage, anchor, validation
from gigpo_fast.advantage import VERL_AGENT
from gigpo_fast.distributed import equal_row_counts, gather_rows, with_all_rows
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs
from gigpo_fast.loss import linear_policy_loss, rows_that_matter
from gigpo_fast.objective import Clip, PolicyObjective
from tests.loss_helpers import change, keywords_of, make_batch
from tests.tolerance import assert_same_bits, error

CUTS = {1: [0, 12], 2: [0, 5, 12], 4: [0, 3, 3, 8, 12]}  # the second of four ranks has no rows
COLUMNS = {1: [0, 23], 2: [0, 10, 23], 4: [0, 3, 4, 14, 23]}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
MATTER = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0]).bool()  # unequal numbers of every second and of every fourth
OBJECTIVE = PolicyObjective(surrogate=Clip(0.1, 0.3))


def rows() -> torch.Tensor:
    return torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def factors(rank: int) -> torch.Tensor:
    """What rank `rank` multiplies the gathered rows by."""
    return torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(100 + rank), dtype=torch.float64)


def gradient(own: slice, rank: int, sum_gradients: bool, dtype=torch.float64) -> torch.Tensor:
    """d of a rank's own rows, where rank r goes on to the loss sum(cubes of all rows * its own factors)."""
    local = rows()[own].to(dtype).requires_grad_()
    (gather_rows(local, sum_gradients=sum_gradients).double() ** 3 * factors(rank)).sum().backward()
    return local.grad


def columns_of_the_head(own: slice, columns: slice, group_name: str) -> list[torch.Tensor]:
    """Hidden states cut over ranks, gathered for a head whose columns are cut over them too; each rank's d hidden is that of its rows."""
    b = make_batch((12, 4), dtype=torch.float64)
    local, weight = b.hidden[own].clone().requires_grad_(), b.weight[columns].clone().requires_grad_()
    hidden = gather_rows(local, sum_gradients=False)
    ids = torch.where(b.mask, b.token_ids, own.start)  # what stands at untrained tokens may differ between ranks
    out = linear_policy_loss(
        hidden, Head(weight, group_name=group_name), ids, b.advantages, b.mask, objective=OBJECTIVE, **keywords_of(b, OBJECTIVE)
    )
    out.loss.backward()
    return [out.loss.detach(), local.grad, weight.grad]


# --- groups and anchor states of a rollout whose tasks lie on several ranks ---

STATES = ["hall", "attic", "hall", "hall", "cellar", "hall", "attic", "attic", "hall", "cellar", "attic", "hall"]
TASK = ["a", "a", "b", "a", "b", "b", "a", "b", "a", "b", "b", "a"]
TRAJECTORY = torch.tensor([0, 0, 2, 1, 3, 2, 1, 3, 1, 2, 3, 0])  # trajectories cross ranks too
STEP = torch.tensor([0, 1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
REWARDS = torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, 0.25, 0.0, 1.0, -0.5, 1.5, 0.0, 3.0])
VALID = torch.tensor([True] * 9 + [False] + [True] * 2)
GIGPO = ("rewards", "trajectory", "group", "anchor", "step", "valid")
GROUP_FUNCTIONS = {
    "group": (advantage.group_advantages, ("scores", "group", "valid"), {"scale": "std"}),
    "group by trajectory": (advantage.group_advantages, ("scores", "group", "trajectory", "valid"), {"statistics": VERL_AGENT}),
    "leave one out": (advantage.leave_one_out_advantages, ("scores", "group", "trajectory", "valid"), {}),
    "gigpo": (advantage.gigpo_advantages, GIGPO, {"gamma": 0.9, "scale": "std"}),
    "gigpo, first visits": (advantage.gigpo_advantages, GIGPO, {"gamma": 0.5, "first_visit": True, "min_trajectories": 2}),
}


def credit(name: str, own: slice, process_group=None) -> list[torch.Tensor]:
    """Anchor ids and advantages of some of the rows, with process_group as parts of the rows of all ranks."""
    function, names, options = GROUP_FUNCTIONS[name]
    states = anchor.group_states(STATES[own], TASK[own], valid=VALID[own], process_group=process_group)
    values = {"scores": REWARDS, "rewards": REWARDS, "group": TASK, "trajectory": TRAJECTORY, "step": STEP, "valid": VALID}
    chosen = {key: states.ids if key == "anchor" else values[key][own] for key in names}
    found = function(**chosen, **options) if process_group is None else with_all_rows(function, chosen, **options)
    return list(found) if isinstance(found, tuple) else [found]


def score(tokens: int, token: int = 0) -> None:
    """Log-probs of a head whose columns lie on all ranks."""
    head = Head(torch.zeros(2, 3), group_name=dist.group.WORLD.group_name)
    with validation("metadata"):  # compared at the first call anyway
        linear_token_log_probs(torch.zeros(tokens, 3), head, torch.full((tokens,), token))


def refusals(rank: int, ranks: int) -> list[str]:
    last, found = rank == ranks - 1, []
    one = torch.zeros(2, 3)
    calls = [
        lambda: gather_rows(torch.zeros(2, 4) if last else one, sum_gradients=True),
        lambda: gather_rows(one.double() if last else one, sum_gradients=True),
        lambda: gather_rows(one.clone().requires_grad_(last), sum_gradients=True),
        lambda: gather_rows(torch.tensor(1.0) if last else one, sum_gradients=True),
        lambda: equal_row_counts(torch.ones(2 if last else 5, dtype=torch.bool)),
        lambda: equal_row_counts(torch.ones(5) if last else torch.ones(5, dtype=torch.bool)),
        lambda: with_all_rows(advantage.group_advantages, {"scores": one[:, 0], "group": ["a"] * (3 if last else 2)}),
        lambda: with_all_rows(
            advantage.group_advantages, {"scores": one[:, 0].to(torch.float64 if last else torch.float32), "group": ["a"] * 2}
        ),
        lambda: with_all_rows(advantage.group_advantages, {"scores": one[:, 0], "group": ["a"] * 2}, scale="std" if last else None),
        lambda: with_all_rows(lambda scores: scores.sum(), {"scores": one[:, 0]}),
        lambda: with_all_rows(advantage.group_advantages, {"scores": one[:, 0], "group": torch.full((2,), 0.5)}),
        lambda: score(5 if last else 4),
        lambda: score(4, 1 if last else 0),
    ]
    for call in calls:
        try:
            call()
            found.append("no error")
        except (ValueError, TypeError) as refused:
            found.append(str(refused))
    return found


MESSAGES = [
    "gather_rows: local must be of one trailing shape on all ranks, got [(3,), ",
    "gather_rows: local must be of one dtype on all ranks, got ['torch.float32', ",
    "gather_rows: local must be of one wish for a gradient on all ranks, got [False, ",
    "gather_rows: local must be (n, ...) on every rank, got () float32 on rank {last}; pass a tensor of rows",
    "equal_row_counts: rows must be as many on each rank as any rank must run, got 2 on rank {last}, where another rank has 5 that matter",
    "equal_row_counts: rows must be (B,) bool on every rank, got (5,) float32 on rank {last}; pass loss.rows_that_matter",
    "with_all_rows: rows must be of one length on each rank, got {{'scores': 2, 'group': 3}} on rank {last}",
    "with_all_rows: rows must be of the same names, kinds and values on all ranks, got {{'scores': 'torch.float64[]', 'group': 'list'}} on rank {last}",
    "with_all_rows: options must be of the same names, kinds and values on all ranks, got {{'scale': \"'std'\"}} on rank {last}",
    "with_all_rows: function must be one whose results have {both} rows, as its arguments, got results () float32",
    "group_advantages: group must be",
    "linear_token_log_probs: token_ids must be the same on all ranks of a vocabulary-parallel head, got others, 4 on rank 0, ",
    "linear_token_log_probs: token_ids must be the same on all ranks of a vocabulary-parallel head, got others, 4 on rank 0, 4 on rank 1",
]


def answers(rank: int, ranks: int) -> dict:
    own, group = slice(*CUTS[ranks][rank : rank + 2]), dist.group.WORLD
    return {
        "dtypes": [gather_rows((8 * rows()[own]).to(dtype), sum_gradients=True) for dtype in DTYPES],
        "gradient": [gradient(own, rank, sum_gradients) for sum_gradients in (True, False)],
        "low gradient": gradient(own, rank, True, torch.bfloat16),
        "head": columns_of_the_head(own, slice(*COLUMNS[ranks][rank : rank + 2]), group.group_name),
        "equal": equal_row_counts(MATTER[rank::ranks]),
        "none": equal_row_counts(MATTER[rank::ranks] & False),
        "credit": {name: credit(name, own, group) for name in GROUP_FUNCTIONS},
        "refusals": refusals(rank, ranks) if ranks > 1 else None,
    }


def _rank(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    torch.save(answers(rank, ranks), f"{folder}/{ranks}-{rank}.pt")
    dist.barrier()  # no rank tears down while another still talks to it
    dist.destroy_process_group()


def _alone_on_a_thread(*arguments) -> None:
    torch.set_num_threads(1)
    _rank(*arguments)


@pytest.fixture(scope="module")
def spawned(tmp_path_factory):
    """What every rank of so many found, run once; one rank is this process."""

    @functools.cache
    def run(ranks: int) -> list[dict]:
        folder = tmp_path_factory.mktemp("gloo")
        if ranks == 1:
            _rank(0, 1, str(folder))
        else:
            torch.multiprocessing.spawn(_alone_on_a_thread, args=(ranks, str(folder)), nprocs=ranks)
        return [torch.load(pathlib.Path(folder) / f"{ranks}-{rank}.pt", weights_only=False) for rank in range(ranks)]

    return run


RANKS = pytest.mark.parametrize("ranks", CUTS)


@RANKS
def test_rows_of_uneven_lengths_are_gathered_bit_by_bit(spawned, ranks):
    for found in spawned(ranks):
        for dtype, got in zip(DTYPES, found["dtypes"]):
            assert_same_bits(str(dtype), got, (8 * rows()).to(dtype))


@RANKS
def test_gradients_are_summed_over_ranks_or_the_ranks_own(spawned, ranks):
    cubed = 3 * rows() ** 2
    for rank, found in enumerate(spawned(ranks)):
        own = slice(*CUTS[ranks][rank : rank + 2])
        summed = sum(factors(other) for other in range(ranks))
        assert error(found["gradient"][0], (cubed * summed)[own]) < 1e-14
        assert error(found["gradient"][1], (cubed * factors(rank))[own]) < 1e-14
        low = 3 * rows().bfloat16().double() ** 2
        each = [(low * factors(other)).bfloat16() for other in range(ranks)]  # what each rank sends back
        assert_same_bits("rounded once", found["low gradient"], sum(part.float() for part in each).bfloat16()[own])


@RANKS
def test_hidden_states_for_a_vocabulary_parallel_head(spawned, ranks):
    b = make_batch((12, 4), dtype=torch.float64)
    hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
    want = linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, objective=OBJECTIVE, **keywords_of(b, OBJECTIVE))
    want.loss.backward()
    for index, expected in ((1, hidden.grad), (2, weight.grad)):
        assert error(torch.cat([found["head"][index] for found in spawned(ranks)]), expected) < 1e-14
    for found in spawned(ranks):
        assert error(found["head"][0], want.loss) < 1e-14


@RANKS
def test_every_rank_keeps_as_many_rows_and_all_that_matter(spawned, ranks):
    kept = [found["equal"] for found in spawned(ranks)]
    assert {int(one.sum()) for one in kept} == {max(int(MATTER[rank::ranks].sum()) for rank in range(ranks))}
    for rank, one in enumerate(kept):
        assert bool(one[MATTER[rank::ranks]].all())
        assert not spawned(ranks)[rank]["none"].any()
    assert ranks == 1 or len({int(MATTER[rank::ranks].sum()) for rank in range(ranks)}) > 1


@RANKS
@pytest.mark.parametrize("name", GROUP_FUNCTIONS)
def test_groups_that_lie_on_several_ranks(spawned, ranks, name):
    """The bits of one process with all rows; a rank that knows its own rows alone gets other advantages."""
    alone = []
    for rank, found in enumerate(spawned(ranks)):
        own = slice(*CUTS[ranks][rank : rank + 2])
        want = [part[own] for part in credit(name, slice(0, 12))]
        assert len(want) == len(found["credit"][name])
        for got, expected in zip(found["credit"][name], want):
            assert_same_bits(name, got, expected)
        alone.append(error(credit(name, own)[0], want[0]) if own.stop > own.start else 0.0)
    assert (max(alone) > 1e-3) == (ranks > 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_differs_between_ranks_is_refused_on_every_rank(spawned, ranks):
    for found in spawned(ranks):
        for got, want in zip(found["refusals"], MESSAGES, strict=True):
            assert got.startswith(want.format(last=ranks - 1, both=2 * ranks))


def test_without_torch_distributed_one_process_is_all_there_is():
    local = rows().requires_grad_()
    for sum_gradients in (True, False):
        gathered = gather_rows(local, sum_gradients=sum_gradients)
        gathered.sum().backward()
        assert torch.equal(gathered, local) and torch.equal(local.grad, torch.ones_like(local))
        local.grad = None
    matter = torch.tensor([True, False, True])
    assert torch.equal(equal_row_counts(matter), matter)
    want = advantage.group_advantages(REWARDS, TASK)
    assert torch.equal(with_all_rows(advantage.group_advantages, {"scores": REWARDS, "group": TASK, "valid": None}), want)
    with pytest.raises(TypeError, match=r"equal_row_counts: rows must be \(B,\) bool on every rank, got \[True\] on rank 0"):
        equal_row_counts([True])
    with pytest.raises(ValueError, match="with_all_rows: rows must be of one length on each rank, got {} on rank 0"):
        with_all_rows(advantage.group_advantages, {})


def test_the_rows_that_fill_up_change_no_loss():
    """Rows that cannot matter in any number: loss and gradients are those of all rows."""
    b = make_batch((6, 5), dtype=torch.float64)
    b.advantages[[0, 2, 3]] = 0
    matter, results = rows_that_matter(b.mask, b.advantages, objective=OBJECTIVE), []
    for more in range(4):
        kept = matter.clone()
        kept[(~matter).nonzero().squeeze(1)[:more]] = True
        part = change(b, **{name: getattr(b, name)[kept] for name in ("hidden", "token_ids", "advantages", "mask", "old")})
        weight = b.weight.clone().requires_grad_()
        keywords = keywords_of(part, OBJECTIVE) | {"objective": OBJECTIVE, "denominator": float(b.mask.sum())}
        out = linear_policy_loss(part.hidden, weight, part.token_ids, part.advantages, part.mask, **keywords)
        out.loss.backward()
        results.append((out.loss.detach(), weight.grad))
    for loss, gradient_ in results:
        assert error(loss, results[-1][0]) < 1e-15 and error(gradient_, results[-1][1]) < 1e-15
    assert int(matter.sum()) == 3 and float(results[0][1].abs().max()) > 0.01
