"""Heads that only look like a linear layer with a float weight: every public function refuses them, and each message's advice works."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from gigpo_fast.logprob import linear_token_log_probs, linear_token_statistics
from gigpo_fast.loss import LinearPolicyLoss, linear_gigpo_loss, linear_grpo_loss
from gigpo_fast.pairwise import linear_pairwise_loss, linear_sequence_log_probs
from gigpo_fast.recipes import recipe

N, H, V = 6, 8, 12
HIDDEN = torch.randn(N, H, generator=torch.Generator().manual_seed(0))
IDS, MASK, ADVANTAGES = torch.arange(N), torch.ones(N, dtype=torch.bool), torch.linspace(-1, 1, N)
SEQUENCES = torch.tensor([0, 0, 0, 1, 1, 1])
PAIRS = torch.tensor([[0, 1]])
OPS = {
    "linear_token_log_probs": lambda hidden, weight: linear_token_log_probs(hidden, weight, IDS).log_probs,
    "linear_token_statistics": lambda hidden, weight: linear_token_statistics(hidden, weight, IDS).log_probs,
    "linear_grpo_loss": lambda hidden, weight: linear_grpo_loss(hidden, weight, IDS, ADVANTAGES, MASK).loss,
    "linear_gigpo_loss": lambda hidden, weight: linear_gigpo_loss(hidden, weight, IDS, ADVANTAGES, MASK).loss,
    "linear_sequence_log_probs": lambda hidden, weight: linear_sequence_log_probs(
        hidden, weight, IDS, MASK, sequence_ids=SEQUENCES, sequences=2
    )[0],
    "linear_pairwise_loss": lambda hidden, weight: linear_pairwise_loss(
        hidden, weight, IDS, MASK, PAIRS, sequence_ids=SEQUENCES, sequences=2, objective=recipe("simpo").objective
    ).loss,
}
OBJECTIVE = recipe("grpo").objective


class Quantised(torch.Tensor):
    """As torchao's: it calls itself float32, holds int8, and multiplies in its own way."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def dequantize(self):
        return self.codes.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:  # which nn.Parameter calls
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(function)


class Scaled(torch.Tensor):
    """Products of another scale, by the Python hook of functions."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        return super().__torch_function__(function, kinds, args, kwargs or {})


class Named(torch.Tensor):
    """Nothing but a name."""


def quantised() -> Quantised:
    return Quantised(torch.randint(-127, 127, (V, H), dtype=torch.int8, generator=torch.Generator().manual_seed(1)), 0.01)


@pytest.mark.parametrize("name", OPS)
def test_a_tensor_subclass_with_products_of_its_own_is_refused(name):
    op, weight = OPS[name], quantised()
    message = r"head.weight must be a plain tensor, got Quantised, a tensor subclass whose products are its own; dequantise the head"
    with pytest.raises(TypeError, match=message):
        op(HIDDEN, weight)
    assert torch.isfinite(op(HIDDEN, weight.dequantize())).all()  # one advice
    scaled = weight.dequantize().as_subclass(Scaled)
    with pytest.raises(TypeError, match=r"a subclass that only carries a name goes through weight.as_subclass\(torch.Tensor\)"):
        op(HIDDEN, scaled)
    want = op(HIDDEN, weight.dequantize())
    assert torch.equal(op(HIDDEN, scaled.as_subclass(torch.Tensor)), want)  # the other
    for plain in (weight.dequantize().as_subclass(Named), nn.Parameter(weight.dequantize())):
        assert torch.equal(op(HIDDEN, plain), want)


@pytest.mark.parametrize("name", OPS)
def test_a_weight_without_numbers_is_refused_and_not_hidden(name):
    message = r"head.weight must be on cpu, where hidden is, got \(12, 8\) float32 on meta, which holds no numbers; load the model, and keep"
    with pytest.raises(ValueError, match=message):
        OPS[name](HIDDEN, torch.empty(V, H, device="meta"))


# ---- modules


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(H, V, bias=False)


class Own(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden.round())


def with_own_forward() -> nn.Linear:
    return Own(H, V, bias=False)


def with_replaced_forward() -> nn.Linear:
    module = linear()
    module.forward = lambda hidden: nn.functional.linear(hidden, module.weight) * 2
    return module


def with_adapter() -> nn.Module:
    module = linear()
    module.base_layer = linear()
    return module


def with_saved_copy() -> nn.Module:
    module = linear()
    module.modules_to_save = nn.ModuleDict({"default": linear()})
    return module


class Hook:
    def __init__(self, offload: bool) -> None:
        self.offload = offload


class Chain:
    def __init__(self, *hooks: Hook) -> None:
        self.hooks = hooks


def with_hook(hook) -> nn.Linear:
    """As accelerate's add_hook_to_module leaves a module."""
    module = linear()
    module._hf_hook, module._old_forward, module.forward = hook, module.forward, module.forward
    return module


def with_weight_norm() -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(linear())


def pruned() -> nn.Linear:
    return prune.l1_unstructured(linear(), "weight", 0.5)


REFUSED = {
    "a class with its own forward": (with_own_forward, "Own, whose forward is its own, as that of a quantised layer; take the head out"),
    "a replaced forward": (with_replaced_forward, r"Linear, whose forward was replaced on this one object; .*\(del module.forward\)"),
    "an adapter": (with_adapter, "Linear, an adapter around one; merge the adapter, or take the head out of its target_modules"),
    "a copy that is trained": (with_saved_copy, "Linear, an adapter around one; merge"),
    "offloaded": (lambda: with_hook(Hook(True)), "Linear with an offloaded weight, .*; keep the head in memory: give it, and an embedding"),
    "offloaded by one of two hooks": (lambda: with_hook(Chain(Hook(False), Hook(True))), "Linear with an offloaded weight"),
    "weight_norm by a hook": (with_weight_norm, "Linear, whose weight a hook makes at each forward; use torch.nn.utils.parametrizations"),
    "pruned": (pruned, r"Linear, whose weight a hook makes at each forward; .* torch.nn.utils.prune.remove\(module, 'weight'\)"),
}


def score(module: nn.Module) -> torch.Tensor:
    return LinearPolicyLoss(module, OBJECTIVE)(HIDDEN, IDS, ADVANTAGES, MASK, old_log_probs=torch.full((N,), -2.0)).loss


def undone(name: str, module: nn.Module) -> nn.Module:
    """The message's advice, followed."""
    match name:
        case "a class with its own forward":
            plain = linear()
            plain.weight = module.weight
            return plain
        case "a replaced forward":
            del module.forward
            return module
        case "an adapter":
            return module.base_layer
        case "a copy that is trained":
            return module.modules_to_save["default"]
        case "offloaded" | "offloaded by one of two hooks":
            return with_hook(Hook(False))
        case "weight_norm by a hook":
            return nn.utils.parametrizations.weight_norm(linear())
        case "pruned":
            return prune.remove(module, "weight")


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_with_another_product_than_its_weights_is_refused(name):
    module, message = REFUSED[name][0](), REFUSED[name][1]
    with pytest.raises(TypeError, match=f"LinearPolicyLoss: lm_head must be a plain linear head, got {message}"):
        score(module)
    plain = undone(name, module)
    with torch.no_grad():
        want = linear_grpo_loss(HIDDEN, plain.weight, IDS, ADVANTAGES, MASK, old_log_probs=torch.full((N,), -2.0)).loss
        assert torch.equal(score(plain), want)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_with_such_a_head_is_refused(name):
    pytest.importorskip("transformers")
    from gigpo_fast.integrations.transformers import add_head_call, hidden_and_head, policy_head
    from tests.test_integrations_transformers import make

    model = make("qwen2")
    make_head, message = REFUSED[name]
    model.lm_head = make_head()
    for function in (policy_head, hidden_and_head, add_head_call):
        with pytest.raises(TypeError, match=f"{function.__name__}: model must be one whose head is a plain linear layer, got {message}"):
            function(model)
    model.lm_head = undone(name, model.lm_head)
    policy_head(model)


def test_a_model_with_a_quantised_weight_is_refused():
    pytest.importorskip("transformers")
    from gigpo_fast.integrations.transformers import policy_head
    from tests.test_integrations_transformers import make

    model = make("qwen2")
    model.lm_head.weight = nn.Parameter(quantised(), requires_grad=False)
    with pytest.raises(TypeError, match="policy_head: the head's weight must be a plain tensor, got Quantised.*; dequantise the head"):
        policy_head(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.dequantize())
    policy_head(model)
