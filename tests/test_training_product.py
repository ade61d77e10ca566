"""Features of training that meet in one step: autocast x gradient checkpointing x torch.compile x gradient accumulation, on a tiny Qwen2."""

import contextlib
import functools
import itertools
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gigpo_fast.integrations.transformers import hidden_and_head
from gigpo_fast.logprob import token_log_probs
from gigpo_fast.loss import LinearPolicyLoss, linear_policy_loss, policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective
from tests.compile_helpers import fresh_compiler  # noqa: F401 - a fixture
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, roundings

transformers = pytest.importorskip("transformers")

B, T, V = 4, 10, 61
OBJECTIVE = PolicyObjective(surrogate=Clip(0.1, 0.3), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
PRODUCT = list(itertools.product(AUTOCAST, (False, True), (None, "aot_eager"), (1, 2)))  # autocast, checkpointing, compiler, micro-batches
PRODUCT += [pytest.param("bfloat16", True, "inductor", 1, marks=pytest.mark.slow)]
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None


def model(dtype=torch.float32) -> nn.Module:
    config = transformers.Qwen2Config(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=32, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(2)
    made = transformers.AutoModelForCausalLM.from_config(config).train()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)  # as initialised, every token is as likely as any other
    assert made.lm_head.weight is made.model.embed_tokens.weight
    return made.to(dtype)


def batch() -> SimpleNamespace:
    g = torch.Generator().manual_seed(3)
    normal = lambda: torch.randn(B, T - 1, generator=g)  # noqa: E731
    b = SimpleNamespace(ids=torch.randint(V, (B, T), generator=g), attention=torch.ones(B, T, dtype=torch.int64))
    b.attention[0, :3] = 0  # left padding
    b.mask, b.advantages = torch.rand(B, T - 1, generator=g) < 0.7, normal()
    b.mask[0, :3] = False
    b.advantages[1] = 0
    b.old, b.ref = -4 + 0.3 * normal(), -4 + 0.3 * normal()
    return b


def function_form(made: nn.Module, objective, b: SimpleNamespace, total: Tensor):
    hidden, head, _ = hidden_and_head(made, input_ids=b.ids, attention_mask=b.attention)
    return linear_policy_loss(
        hidden[:, :-1], head, b.ids[:, 1:], b.advantages, b.mask,
        old_log_probs=b.old, ref_log_probs=b.ref, objective=objective, denominator=total,
    )  # fmt: skip


def module_form(made: nn.Module, loss: LinearPolicyLoss, b: SimpleNamespace, total: Tensor):
    hidden = made.model(input_ids=b.ids, attention_mask=b.attention).last_hidden_state
    return loss(hidden[:, :-1], b.ids[:, 1:], b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref, denominator=total)


def plain_form(made: nn.Module, objective, b: SimpleNamespace, total: Tensor):
    """The model's own logits and the loss in torch."""
    logits = made(input_ids=b.ids, attention_mask=b.attention).logits[:, :-1]
    found = token_log_probs(logits.float() if logits.dtype == torch.bfloat16 else logits, b.ids[:, 1:])
    return policy_loss(
        found.log_probs, b.advantages, b.mask, entropy=found.entropy,
        old_log_probs=b.old, ref_log_probs=b.ref, objective=objective, denominator=total,
    )  # fmt: skip


FORMS = {"function": function_form, "module": module_form, "plain": plain_form}


class Seeing:
    """A compiler that notes whether the fused loss is inside of what it compiles."""

    def __init__(self, name: str) -> None:
        self.name, self.saw_the_loss = name, False

    def __call__(self, graph, inputs):
        self.saw_the_loss |= any("linear_policy_loss" in str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend(self.name)(graph, inputs)


def train(form: str, dtype=torch.float32, autocast=None, checkpointing=False, compiler=None, micro=1) -> dict[str, Tensor]:
    """The loss of a batch and its gradients, by name."""
    made, b, seeing, forwards = model(dtype), batch(), Seeing(compiler), []
    if checkpointing:
        renamed = "activation" if hasattr(made, "activation_checkpointing_enable") else "gradient"
        getattr(made, f"{renamed}_checkpointing_enable")({"use_reentrant": False})
    if compiler is None:
        made.model.layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
    what = LinearPolicyLoss(made.lm_head, OBJECTIVE) if form == "module" else OBJECTIVE
    step = FORMS[form] if compiler is None else torch.compile(FORMS[form], backend=seeing)
    total, loss = b.mask.sum().to(torch.float32), torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(B).chunk(micro):
        part = SimpleNamespace(**{name: value[rows] for name, value in vars(b).items()})
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            out = step(made, what, part, total)
        out.loss.backward()
        loss += out.loss.detach().double()
    assert seeing.saw_the_loss == (compiler is not None)
    assert compiler is not None or len(forwards) == micro * (2 if checkpointing else 1)
    return {"loss": loss} | {name: parameter.grad for name, parameter in made.named_parameters()}


@functools.cache
def exact() -> dict[str, Tensor]:
    return train("plain", torch.float64)


@functools.cache
def eager(autocast: str) -> dict[str, Tensor]:
    return train("plain", autocast=AUTOCAST[autocast])


def check(got: dict[str, Tensor], autocast: str) -> None:
    """Twice the error of eager torch with nothing else on (gradients: three times), and some roundings: sums are taken in another order."""
    unit, want = AUTOCAST[autocast] or torch.float32, exact()
    assert got.keys() == want.keys() and len(got) > 20
    for name, value in got.items():
        factor, count = (VALUE, 4) if name == "loss" else (GRADIENT, 4)
        assert value.dtype == (torch.float64 if name == "loss" else torch.float32)
        assert_no_worse_than(name, value, want[name], eager(autocast)[name], factor=factor, floor=roundings(want[name], unit, count))


@pytest.mark.parametrize("autocast, checkpointing, compiler, micro", PRODUCT)
def test_every_combination_trains_what_eager_torch_trains(autocast, checkpointing, compiler, micro):
    if compiler == "inductor" and not HAS_COMPILER:
        pytest.skip("inductor needs a C++ compiler for CPU tensors: apt-get install g++")
    check(train("function", autocast=AUTOCAST[autocast], checkpointing=checkpointing, compiler=compiler, micro=micro), autocast)


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
@pytest.mark.parametrize("autocast", AUTOCAST)
def test_the_module_in_all_of_them(autocast, compiler):
    check(train("module", autocast=AUTOCAST[autocast], checkpointing=True, compiler=compiler, micro=2), autocast)


@pytest.mark.parametrize("autocast", AUTOCAST)
def test_checkpointing_changes_no_bit(autocast):
    options = {"autocast": AUTOCAST[autocast]}
    with_it, without = train("function", checkpointing=True, **options), train("function", **options)
    for name, value in without.items():
        assert_same_bits(name, with_it[name], value)


def test_the_loss_inside_of_a_checkpoint():
    """It may be recomputed like a layer: the same bits, gradients formed in the second forward."""
    b, made = batch(), model()
    hidden, head, _ = hidden_and_head(made, input_ids=b.ids, attention_mask=b.attention)
    results = []
    for around in (lambda f, *inputs: f(*inputs), functools.partial(checkpoint, use_reentrant=False)):
        leaf, weight = hidden.detach()[:, :-1].clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
        out = around(lambda h, w: linear_policy_loss(
            h, w, b.ids[:, 1:], b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref, objective=OBJECTIVE,
        ), leaf, weight)  # fmt: skip
        out.loss.backward()
        results.append((out.loss.detach(), leaf.grad, weight.grad))
    for one, other in zip(*results):
        assert_same_bits("checkpointed", one, other)


def test_the_comparison_sees_a_lost_micro_batch_and_a_rounded_loss():
    got = train("function", micro=2)
    with pytest.raises(AssertionError, match="loss: error"):
        check(got | {"loss": got["loss"].bfloat16().double()}, "float32")
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(AssertionError, match=f"{name}: error"):
        check(got | {name: 0.5 * got[name]}, "bfloat16")
