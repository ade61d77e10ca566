"""A tiny transformer that owns its loss, wrapped in every way that must train it as one process does; on gloo here, on NCCL where there is one."""

import contextlib
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gigpo_fast.distributed import equal_row_counts, global_denominator
from gigpo_fast.loss import LinearPolicyLoss, LossOutput, rows_that_matter
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, TokenMean

B, T, H, V = 8, 7, 8, 19
FULL = PolicyObjective(
    surrogate=Clip(0.1, 0.3), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02), aggregation=SequenceMeanTokenMean()
)
SKIPPING = PolicyObjective(surrogate=Clip(0.1, 0.3), aggregation=TokenMean())
# head: the group of parameters that its weight is sharded with
CASES = {
    "resharded after forward": {},
    "kept after forward": {"reshard": False},
    "in the root's group": {"head": "root"},
    "a root of its own": {"head": "alone"},
    "tied, in the root's group": {"tied": True, "head": "root"},
    "tied, one group with the embedding": {"tied": True, "head": "embedding"},
    "tied, kept after forward": {"tied": True, "head": "embedding", "reshard": False},
    "frozen head": {"frozen": True},
    "frozen trunk": {"frozen": "trunk"},
    "padded vocabulary": {"vocab_size": 17},
    "a rank that trains nothing": {"nothing": True},
    "accumulation without reduction": {"parts": 2},
    "tied, accumulation, a rank that trains nothing": {"tied": True, "head": "root", "parts": 2, "nothing": True},
    "idle rows left out": {"objective": SKIPPING, "skip": True},
    "checkpointed blocks": {"checkpoint": True},
    "DDP": {"wrapper": "ddp"},
    "DDP, tied, accumulation": {"wrapper": "ddp", "tied": True, "parts": 2, "nothing": True},
    "DDP looking for unused parameters": {"wrapper": "ddp", "unused": True},
    "bfloat16 parameters": {"low": True, "steps": 1},
}
ON_FOUR = {  # on a 2 x 2 mesh
    "vocabulary-parallel under FSDP": {"columns": True},
    "sharded over two, replicated over two": {"hybrid": True},
}
LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


class Layer(nn.Module):
    """Causal attention and a perceptron, each with a norm and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(H), nn.LayerNorm(H)
        self.qkv, self.out, self.up, self.down = nn.Linear(H, 3 * H), nn.Linear(H, H), nn.Linear(H, 2 * H), nn.Linear(2 * H, H)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, H // 2)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(nn.Module):
    def __init__(self, checkpoint: bool = False) -> None:
        super().__init__()
        self.embed, self.layers, self.norm, self.checkpoint = (
            nn.Embedding(V, H),
            nn.ModuleList([Layer(), Layer()]),
            nn.LayerNorm(H),
            checkpoint,
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if self.checkpoint else layer(x)
        return self.norm(x)


class Policy(nn.Module):
    """Everything of a step behind one forward, which is what a wrapper wraps."""

    def __init__(self, *, tied=False, objective=FULL, checkpoint=False, vocab_size=None, group_name=None) -> None:
        super().__init__()
        self.trunk, head = Trunk(checkpoint), nn.Linear(H, V, bias=False)
        nn.init.normal_(self.trunk.embed.weight, std=0.3)  # also a head
        if tied:
            head.weight = self.trunk.embed.weight
        self.loss = LinearPolicyLoss(head, objective, vocab_size=vocab_size, group_name=group_name)

    def forward(self, ids: Tensor, *tokens: Tensor, **keywords) -> LossOutput:
        return self.loss(self.trunk(ids), *tokens, **keywords)


def batch(case: dict, device="cpu") -> SimpleNamespace:
    g = torch.Generator().manual_seed(11)
    normal = lambda: torch.randn(B, T, generator=g, dtype=torch.float64)  # noqa: E731
    ids = torch.randint(17, (B, T + 1), generator=g)
    b = SimpleNamespace(ids=ids[:, :-1], token_ids=ids[:, 1:], advantages=normal(), old=-3 + 0.3 * normal(), ref=-3 + 0.3 * normal())
    b.mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)  # rows of uneven length
    if case.get("nothing"):
        b.mask[: B // 4] = False  # all of the first of four ranks, and of the first micro-batch of the first of two
    if case.get("skip"):
        b.advantages[[0, 1, 3, 6]] = 0  # of two ranks 1 and 3 rows matter, of four 0, 1, 2 and 1
    return SimpleNamespace(**{name: value.to(device) for name, value in vars(b).items()})


def build(case: dict, device="cpu", dtype=torch.float64, columns=None) -> Policy:
    torch.manual_seed(5)
    policy = Policy(
        tied=case.get("tied", False),
        objective=case.get("objective", FULL),
        checkpoint=case.get("checkpoint", False),
        vocab_size=case.get("vocab_size"),
        group_name=None if columns is None else columns.get_group().group_name,
    ).to(device, dtype)
    frozen = case.get("frozen")
    for part in (policy.trunk,) if frozen == "trunk" else (policy.loss,) if frozen else ():
        part.requires_grad_(False)
    if columns is not None:
        weight = distribute_tensor(policy.loss.lm_head.weight.detach(), columns, [Shard(0)])
        policy.loss.lm_head.weight = nn.Parameter(weight)
    return policy


def wrap(policy: Policy, case: dict, mesh) -> nn.Module:
    if case.get("wrapper") == "ddp":
        return nn.parallel.DistributedDataParallel(policy, find_unused_parameters=case.get("unused", False))
    options = {"mesh": mesh, "reshard_after_forward": case.get("reshard", True), **({"mp_policy": LOW} if case.get("low") else {})}
    for layer in policy.trunk.layers:
        fully_shard(layer, **options)
    head = case.get("head", "loss")
    if head == "embedding":
        fully_shard([policy.trunk.embed, policy.loss], **options)
    elif head != "root":
        fully_shard(policy.loss, **options)
    if head == "alone":  # two roots: nothing around them is wrapped
        fully_shard(policy.trunk, **options)
        return policy
    return fully_shard(policy, **options)


def whole(value: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()


def train(case: dict, *, ranks=1, device="cpu", dtype=torch.float64, own_dtype=None) -> list[dict]:
    """For each step the summed loss, the merged metrics and every gradient, of one process with all rows (ranks=1) or of this rank's part."""
    mesh = columns = group = None
    place, parts = 0, ranks
    if ranks > 1 and case.get("columns"):
        grid = init_device_mesh(torch.device(device).type, (2, ranks // 2), mesh_dim_names=("data", "columns"))
        mesh, columns, parts, place = grid["data"], grid["columns"], 2, grid["data"].get_local_rank()
        group = mesh.get_group()
    elif ranks > 1:
        names, sizes = (("replicate", "shard"), (2, ranks // 2)) if case.get("hybrid") else (("data",), (ranks,))
        mesh, place = init_device_mesh(torch.device(device).type, sizes, mesh_dim_names=names), dist.get_rank()
    policy = build(case, device, dtype, columns).to(own_dtype or dtype)
    model = policy if mesh is None else wrap(policy, case, mesh)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    b, objective = batch(case, device), policy.loss.objective
    rows = torch.arange(B, device=device).chunk(parts)[place]
    total = global_denominator(b.mask[rows], objective=objective, process_group=group)
    if case.get("skip") and ranks > 1:
        keep = rows_that_matter(b.mask[rows], b.advantages[rows], objective=objective)
        rows = rows[equal_row_counts(keep)]
    found = []
    for _ in range(case.get("steps", 2)):
        outputs, micro = [], rows.chunk(case.get("parts", 1))
        for index, some in enumerate(micro):
            reference = {"ref_log_probs": b.ref[some]} if objective.needs_reference else {}
            with reduction(model, last=index == len(micro) - 1):
                out = model(
                    b.ids[some], b.token_ids[some], b.advantages[some], b.mask[some],
                    old_log_probs=b.old[some], denominator=total, **reference,
                )  # fmt: skip
                (out.loss * parts).backward()  # wrappers average over ranks
            outputs.append(LossOutput(out.loss.detach(), out.metrics))
        merged = LossOutput.merge(outputs)
        if ranks > 1:
            every = [None] * ranks
            dist.all_gather_object(every, (merged.loss.cpu(), merged.metrics.cpu()), group=None)
            merged = LossOutput.merge([LossOutput(*one) for one in every[:: ranks // parts]])
        gradients = {name: whole(p.grad) for name, p in policy.named_parameters()}
        found.append({"loss": merged.loss, "metrics": LossOutput(merged.loss, merged.metrics).metrics_as_floats(), "gradients": gradients})
        optimizer.step()
        optimizer.zero_grad()
    return found


@contextlib.contextmanager
def reduction(model: nn.Module, *, last: bool):
    """Gradients are reduced over ranks in the last micro-batch alone."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield
