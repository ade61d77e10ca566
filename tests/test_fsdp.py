"""FSDP2 and DDP around LinearPolicyLoss: two and four gloo processes train what one process with the whole batch trains; wrong wrapping raises."""

import copy
import functools
import pathlib

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gigpo_fast import owned_head
from gigpo_fast.distributed import Denominator, head_of_dtensor
from gigpo_fast.loss import LinearPolicyLoss, linear_policy_loss
from tests.fsdp_cases import CASES, FULL, ON_FOUR, SKIPPING, Trunk, batch, build, train, wrap
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, error, roundings

EXACT = [name for name, case in (CASES | ON_FOUR).items() if not case.get("low")]


def call(policy, rows=slice(0, 2)):
    b = batch({})
    return policy(
        b.ids[rows],
        b.token_ids[rows],
        b.advantages[rows],
        b.mask[rows],
        old_log_probs=b.old[rows],
        ref_log_probs=b.ref[rows],
        denominator=1.0,
    )


def casting(mesh, **where):
    """A policy whose wrappers cast the inputs of the loss, of the root or of both."""
    policy, options = build({}, dtype=torch.float32), {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
    if "loss" in where:
        fully_shard(policy.loss, **options)
    return fully_shard(policy, **(options if "root" in where else {"mesh": mesh}))


def head_alone(mesh):
    policy = build({})
    fully_shard(policy.loss.lm_head, mesh=mesh)
    return fully_shard(policy, mesh=mesh)


def tied_apart(mesh):
    """Two roots: none of them sees that the other has the same parameter."""
    policy = build({"tied": True})
    fully_shard(policy.loss, mesh=mesh)
    fully_shard(policy.trunk, mesh=mesh)
    return policy


def sharded_head_as_columns(mesh):
    """A head that FSDP sharded, taken for a vocabulary-parallel one."""
    policy, b = wrap(build({}), {}, mesh), batch({})
    rows = slice(torch.distributed.get_rank(), torch.distributed.get_rank() + 1)
    head = head_of_dtensor(policy.loss.lm_head.weight)
    hidden = torch.randn(1, b.mask.shape[1], head.weight.shape[1], dtype=torch.float64)
    linear_policy_loss(hidden, head, b.token_ids[rows], b.advantages[rows], torch.ones_like(b.mask[rows]), objective=SKIPPING)


REFUSED = {
    "inputs cast by the loss's policy": (
        lambda mesh: call(casting(mesh, loss=True)),
        "LinearPolicyLoss: advantages must be float32 or float64, got (2, 7) bfloat16; a mixed-precision policy that casts inputs rounds "
        "log-probs and counts: MixedPrecisionPolicy(cast_forward_inputs=False)",
    ),
    "inputs cast by the root's policy": (lambda mesh: call(casting(mesh, root=True)), "LinearPolicyLoss: advantages must be float32"),
    "lm_head sharded alone": (
        lambda mesh: call(head_alone(mesh)),
        "lm_head.weight must be whole while the forward runs, or sharded over the ranks that group_name names, got a DTensor, ",
    ),
    "a tied head sharded apart from its embedding": (
        lambda mesh: call(tied_apart(mesh)),
        "LinearPolicyLoss: lm_head.weight must be still the weight of the Embedding that it was tied to, got a parameter of its own, so that "
        "each would be trained with half of the gradient; shard both in one group: fully_shard([embedding, loss])",
    ),
    "an FSDP shard as vocabulary columns": (
        sharded_head_as_columns,
        "linear_policy_loss: token_ids must be the same on all ranks of a vocabulary-parallel head, got others, 7 on rank 0, 7 on rank 1",
    ),
}


def _rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    found = {}
    for name, case in (CASES | (ON_FOUR if ranks == 4 else {})).items():
        low = case.get("low", False)
        found[name] = train(case, ranks=ranks, dtype=torch.float32 if low else torch.float64)
    messages = {}
    for name, (wrong, _) in REFUSED.items():
        try:
            wrong(init_device_mesh("cpu", (ranks,)))
            messages[name] = "no error"
        except (ValueError, TypeError) as refused:
            messages[name] = str(refused)
    torch.save((found, messages), f"{folder}/{ranks}-{rank}.pt")
    torch.distributed.barrier()  # no rank tears down while another still talks to it
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def spawned(tmp_path_factory):
    """What every rank of so many found, run once."""

    @functools.cache
    def run(ranks: int) -> list[tuple[dict, dict]]:
        folder = tmp_path_factory.mktemp("gloo")
        torch.multiprocessing.spawn(_rank, args=(ranks, str(folder)), nprocs=ranks)
        return [torch.load(pathlib.Path(folder) / f"{ranks}-{rank}.pt", weights_only=False) for rank in range(ranks)]

    return run


@pytest.mark.parametrize("ranks, name", [(2, name) for name in EXACT if name not in ON_FOUR] + [(4, name) for name in EXACT])
def test_every_rank_has_the_loss_and_the_gradients_of_one_process(spawned, ranks, name):
    case = (CASES | ON_FOUR)[name]
    wanted = train(case)
    for found, _ in spawned(ranks):
        for step, (got, want) in enumerate(zip(found[name], wanted, strict=True)):
            assert error(got["loss"], want["loss"]) < 1e-13, step
            assert got["gradients"].keys() == want["gradients"].keys()
            for parameter, gradient in want["gradients"].items():
                if gradient is None:
                    assert got["gradients"][parameter] is None
                else:
                    assert error(got["gradients"][parameter], gradient) < 1e-13, (step, parameter)
                    assert float(gradient.abs().max()) > 1e-6
            if not case.get("skip"):  # rows that are left out are in no metric but the loss
                assert got["metrics"] == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in want["metrics"].items()}
    frozen = [name for name, gradient in wanted[0]["gradients"].items() if gradient is None]
    assert bool(frozen) == bool(case.get("frozen"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_bfloat16_parameters_reduced_in_float32(spawned, ranks):
    """Against float64: at most the error of one process whose parameters are bfloat16, and one rounding of each rank's share."""
    case = CASES["bfloat16 parameters"]
    (exact,), (plain,) = train(case), train(case, dtype=torch.float32, own_dtype=torch.bfloat16)
    for found, _ in spawned(ranks):
        (got,) = found["bfloat16 parameters"]
        assert_no_worse_than(
            "loss", got["loss"], exact["loss"], plain["loss"], factor=VALUE, floor=roundings(exact["loss"], torch.bfloat16, 1)
        )
        for name, want in exact["gradients"].items():
            assert got["gradients"][name].dtype == torch.float32
            floor = roundings(want, torch.bfloat16, ranks)
            assert_no_worse_than(name, got["gradients"][name], want, plain["gradients"][name], factor=GRADIENT, floor=floor)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", REFUSED)
def test_wrapping_that_would_train_another_model_is_refused_on_every_rank(spawned, ranks, name):
    for _, messages in spawned(ranks):
        assert REFUSED[name][1] in messages[name]


def test_the_batch_has_what_the_cases_need():
    """The control of "idle rows left out": ranks differ in how many rows matter, and leaving rows out without filling up would not match."""
    b = batch(CASES["idle rows left out"])
    matter = (b.mask & (b.advantages != 0)).any(1)
    for ranks in (2, 4):
        assert len({int(part.sum()) for part in matter.chunk(ranks)}) > 1
    assert not batch({"nothing": True}).mask[:2].any() and batch({}).mask.any(1).all()


def test_low_precision_numbers_of_tokens_are_refused_in_every_argument():
    policy, b, low = build({}), batch({}), torch.zeros(8, 7, dtype=torch.bfloat16)
    hidden = policy.trunk(b.ids)
    for name, keywords in {
        "old_log_probs": {"old_log_probs": low},
        "temperature": {"temperature": low + 1},
        r"denominator\.total": {"denominator": Denominator(low[0, 0] + 1)},
        r"extras\['weights'\]": {"extras": {"weights": low}},
    }.items():
        with pytest.raises(TypeError, match=rf"LinearPolicyLoss: {name} must be float32 or float64, got"):
            policy.loss(hidden, b.token_ids, b.advantages, b.mask, **keywords)


def test_a_tie_is_known_to_its_owner_alone():
    """Copies and modules without a tie are not held to one."""
    trunk = Trunk()
    head = torch.nn.Linear(8, 19, bias=False)
    head.weight = trunk.embed.weight
    loss = LinearPolicyLoss(head, FULL)
    assert [(reference() is trunk.embed, name) for reference, name in owned_head._ties[loss]] == [(True, "weight")]
    assert copy.deepcopy(loss) not in owned_head._ties
    assert owned_head._ties[LinearPolicyLoss(torch.nn.Linear(8, 19), FULL)] == []
