"""Every public function under every transform of torch: the right value, or our message. Never a 0 that nobody asked for."""

import re

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import gigpo_fast
from tests.compile_helpers import fresh_compiler  # noqa: F401 - a fixture
from tests.test_api import public_signatures
from tests.transform_cases import BLOCKS, CASES, CONSTANT, CONSTANTS, WITHOUT

PREFIX = r"^(linear_)?[a-z_]+: .+ must .+, got .+; .+|^[a-z_]+: gradients of gradients are not available, got .+; .+"
REFUSED = {  # what is refused by name: everything else must be right
    "create_graph": {
        "logprob.token_log_probs", "logprob.linear_token_log_probs", "loss.linear_policy_loss", "loss.LinearPolicyLoss", "loss.linear_grpo_loss",
        "loss.linear_gigpo_loss", "pairwise.linear_sequence_log_probs", "pairwise.linear_pairwise_loss",
    },
}  # fmt: skip


def along(leaves, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for leaf in leaves)


def twice(leaves, ways=None):
    return tuple(torch.stack([leaf, leaf + 0.1 * way]) for leaf, way in zip(leaves, ways or along(leaves)))


def every(leaves):
    return tuple(range(len(leaves)))


def dual_level(f, leaves):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(*(forward_ad.make_dual(leaf, way) for leaf, way in zip(leaves, along(leaves))))).tangent


def gradient_with_tangent(f, leaves):
    """Forward over reverse without torch.func."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf.clone().requires_grad_(), way) for leaf, way in zip(leaves, along(leaves))]
        return [forward_ad.unpack_dual(found).tangent for found in torch.autograd.grad(f(*duals), duals)]


def graph_outside(f, leaves, way):
    """The graph is made outside of the transform that its backward runs in."""
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    out = f(*own)
    pulls = torch.tensor([1.0, -2.0], dtype=out.dtype)
    if way == "batched":
        return torch.autograd.grad(out, own, pulls, is_grads_batched=True)
    if way == "vmap":
        return vmap(lambda pull: torch.autograd.grad(out, own, pull, retain_graph=True))(pulls)
    with forward_ad.dual_level():
        pull = forward_ad.make_dual(pulls[0], pulls[1])
        return [forward_ad.unpack_dual(found).tangent for found in torch.autograd.grad(out, own, pull)]


def create_graph(f, leaves):
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    first = torch.autograd.grad(f(*own), own, create_graph=True)
    return torch.autograd.grad(sum(found.square().sum() for found in first), own)


def frozen(f, leaves):
    """Only the last leaf is differentiated: what needs no gradient is a constant in every formula."""
    return jvp(lambda last: f(*leaves[:-1], last), leaves[-1:], along(leaves)[-1:])[1], grad(f, len(leaves) - 1)(*leaves)


def compiled(transform):
    def run(f, leaves):
        ways = along(leaves)  # a generator cannot be made inside of a graph
        return torch.compile(lambda *x: transform(f, x, ways), fullgraph=True, backend="aot_eager")(*leaves)

    return run


def plain_jvp(f, leaves, ways=None):
    return jvp(f, leaves, ways or along(leaves))[1]


def plain_grad(f, leaves, ways=None):
    return grad(f, every(leaves))(*leaves)


def plain_vmap(f, leaves, ways=None):
    return vmap(f)(*twice(leaves, ways))


TRANSFORMS = {
    "value": lambda f, x: f(*x),
    "jvp": plain_jvp,
    "dual_level": dual_level,
    "one leaf": frozen,
    "grad": plain_grad,
    "vjp": lambda f, x: vjp(f, *x)[1](torch.tensor(1.7, dtype=torch.float64)),
    "jacrev": lambda f, x: jacrev(lambda *x: f(*x).expand(2) * torch.arange(2.0), every(x))(*x),
    "jacfwd": lambda f, x: jacfwd(f, every(x))(*x),
    "vmap": plain_vmap,
    "vmap of one": lambda f, x: vmap(lambda first: f(first, *x[1:]))(twice(x)[0]),
    "vmap of grad": lambda f, x: vmap(grad(f, every(x)))(*twice(x)),
    "grad of vmap": lambda f, x: grad(lambda *x: vmap(f)(*x).square().sum(), every(x))(*twice(x)),
    "hessian": lambda f, x: hessian(f, every(x))(*x),
    "jvp of grad": lambda f, x: jvp(grad(f, every(x)), x, along(x))[1],
    "grad of jvp": lambda f, x: grad(lambda *x: plain_jvp(f, x), every(x))(*x),
    "jvp of jvp": lambda f, x: jvp(lambda *x: plain_jvp(f, x), x, along(x, 1))[1],
    "gradient with tangent": gradient_with_tangent,
    "is_grads_batched": lambda f, x: graph_outside(f, x, "batched"),
    "vmap of backward": lambda f, x: graph_outside(f, x, "vmap"),
    "backward with tangent": lambda f, x: graph_outside(f, x, "tangent"),
    "functional.jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "functional.jacobian forward": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "create_graph": create_graph,
    "export": lambda f, x: exported(f, x)(*x),
}
COMPILED = {"compile": lambda f, x, ways: f(*x), "compile jvp": plain_jvp, "compile grad": plain_grad, "compile vmap": plain_vmap}
OF_OPS = ("logprob.token_log_probs", "logprob.linear_token_log_probs", "loss.linear_policy_loss", "pairwise.linear_pairwise_loss")


def exported(f, leaves):
    class Module(torch.nn.Module):
        def forward(self, *x):
            return f(*x)

    return torch.export.export(Module(), leaves, strict=False).module()


def flat(found):
    return torch.utils._pytree.tree_leaves(found)


def check(name, transform, run):
    ours, plain, leaves = CASES[name]
    if name in REFUSED.get(transform, ()):
        with pytest.raises((RuntimeError, ValueError)) as raised:
            run(ours, leaves)
        assert re.match(PREFIX, str(raised.value)), raised.value
        return
    got, want = flat(run(ours, leaves)), flat(run(plain, leaves))
    assert len(got) == len(want)
    for number, (one, other) in enumerate(zip(got, want)):
        assert one.shape == other.shape
        assert float((one.detach() - other.detach()).abs().max()) <= 1e-12 * max(1.0, float(other.detach().abs().max())), number


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_right_value_or_our_message(name, transform):
    check(name, transform, TRANSFORMS[transform])


@pytest.mark.parametrize("transform", COMPILED)
@pytest.mark.parametrize("name", OF_OPS)
def test_compiled_with_the_transform_inside(name, transform):
    check(name, transform, compiled(COMPILED[transform]))


@pytest.mark.parametrize("transform", [plain_jvp, dual_level, plain_grad, plain_vmap])
@pytest.mark.parametrize("name", OF_OPS)
def test_a_transform_of_an_exported_program_is_refused_by_name(name, transform):
    """The program has the op alone; following the advice, transforming the function itself, is what the first test does."""
    ours, _, leaves = CASES[name]
    program = exported(ours, leaves)
    with pytest.raises(RuntimeError, match="[a-z_]+: its custom op must run outside of torch.func and forward mode, got a transform around it"):
        transform(program, leaves)


@pytest.mark.parametrize("name", CONSTANTS)
def test_functions_of_rewards_are_constants_under_every_transform(name):
    """They carry no gradient, by contract: then none in forward mode or torch.func either. vmap gives what a loop does."""
    function, value = CONSTANTS[name], CONSTANT
    assert not function(value.clone().requires_grad_()).requires_grad
    assert not jvp(function, (value,), along((value,)))[1].any()
    assert not grad(lambda x: function(x).square().sum())(value).any()
    dual = dual_level(function, (value,))
    assert dual is None or not dual.any()
    rows = twice((value,))[0]
    assert float((vmap(function)(rows) - torch.stack([function(row) for row in rows])).abs().max()) < 1e-12


def test_every_public_function_has_a_row():
    """A new public function must be given a case, or be named among those without a derivative; a new module too."""
    constant = {"advantage", "anchor", "backend", "objective", "packing", "recipes", "reward", "rollouts", "testing", "validation"}
    assert set(gigpo_fast.__all__) - constant == set(WITHOUT)
    for module in WITHOUT:
        public = {line.split("(")[0].split(".")[2] for line in public_signatures() if line.startswith(f"gigpo_fast.{module}.")}
        rows = {name.split(".")[1] for name in CASES if name.startswith(f"{module}.")}
        assert public - BLOCKS == rows | (WITHOUT[module] - BLOCKS), module


def test_the_table_sees_a_silent_zero(monkeypatch):
    """A function whose derivative is lost on the way must fail its row."""
    ours, plain, leaves = CASES["loss.grpo_loss"]
    monkeypatch.setitem(CASES, "loss.grpo_loss", (lambda x: ours(x.detach()) + 0 * x.sum(), plain, leaves))
    for transform in ("jvp", "dual_level", "grad", "hessian"):
        with pytest.raises(AssertionError):
            check("loss.grpo_loss", transform, TRANSFORMS[transform])
