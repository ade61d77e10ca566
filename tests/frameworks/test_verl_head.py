"""Our head in the place of verl's FusedLinearForPPO: alone, and inside models that verl has patched."""

import contextlib
import copy

import pytest
import torch
import verl
from tensordict import NonTensorData, TensorDict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from verl.models.transformers import monkey_patch
from verl.utils.experimental import torch_functional
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.workers.utils import losses

from gigpo_fast.integrations.verl import FusedTokenHead, ppo_loss, use_fused_head
from tests.frameworks.verl_cases import actor_config

SIZES = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
MODELS = {
    "qwen2": {},
    "gemma2": {"final_logit_softcapping": 1.0},
    "cohere": {"logit_scale": 2.0},
    "granite": {"logits_scaling": 0.5},
    "phi": {},
}
STOCK_IGNORES = ("gemma2", "cohere", "granite", "phi")  # softcap, scale, scale, bias


def tensors(dtype: torch.dtype, leading: tuple[int, ...], columns: int = 301):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*leading, 32, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(columns, 32, generator=generator)).to(dtype).requires_grad_()
    ids = torch.randint(columns, leading, generator=generator)
    upstream = torch.randn(2, *leading, generator=generator)
    return hidden, weight, ids, upstream


def outcome(head: nn.Module, hidden, weight, ids, upstream, temperature: float = 0.7) -> list[torch.Tensor]:
    """log-probs, entropy and the gradients of hidden and weight, for an upstream gradient of both."""
    hidden, weight = (value.detach().clone().requires_grad_() for value in (hidden, weight))
    log_probs, entropy = head(hidden, weight, ids, temperature)
    torch.autograd.backward([log_probs, entropy.to(log_probs)], list(upstream.to(log_probs)))
    return [log_probs.detach(), entropy.detach(), hidden.grad, weight.grad]


class Exact(nn.Module):
    """The slow equivalent in the docstring, in float64."""

    def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        log_p = torch.log_softmax((hidden_states.double() @ vocab_weights.double().T) / temperature, -1)
        return log_p.gather(-1, input_ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("leading", [(3, 20), (50,)], ids=["B,T,H", "N,H"])
def test_float32_equals_verls_head(leading):
    given = tensors(torch.float32, leading)
    for got, want in zip(outcome(FusedTokenHead(), *given), outcome(FusedLinearForPPO(chunk_size=16), *given)):
        assert got.dtype == want.dtype and got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("leading", [(3, 20), (50,)], ids=["B,T,H", "N,H"])
def test_bfloat16_is_closer_than_verls_head(leading):
    """verl rounds logits and dlogits to bfloat16; ours only the gradients, once."""
    given = tensors(torch.bfloat16, leading)
    exact = outcome(Exact(), *given)
    for name, truth, got, want in zip(
        ("log_probs", "entropy", "d_hidden", "d_weight"), exact, outcome(FusedTokenHead(), *given), outcome(FusedLinearForPPO(), *given)
    ):
        mine, theirs = ((value.double() - truth.double()).norm() / truth.double().norm() for value in (got, want))
        assert mine <= theirs, name
        if name in ("log_probs", "entropy"):
            assert got.dtype == torch.float32 and mine <= 1e-5, name


def test_tokens_without_upstream_gradient_cost_no_backward():
    """A prompt whose hidden state is infinite has no finite logits: if it entered the backward, d_weight would be NaN."""
    hidden, weight, ids, upstream = tensors(torch.float32, (40,))
    hidden = hidden.detach().clone()
    hidden[:25] = float("inf")
    upstream[:, :25] = 0
    got = outcome(FusedTokenHead(), hidden, weight, ids, upstream)
    want = outcome(FusedTokenHead(), hidden[25:], weight, ids[25:], upstream[:, 25:])
    assert torch.equal(got[3], want[3]) and torch.equal(got[2][25:], want[2]) and not got[2][:25].any()


def test_chunk_size_is_memory():
    given = tensors(torch.float32, (50,))
    for got, want in zip(outcome(FusedTokenHead(chunk_size=512), *given), outcome(FusedTokenHead(), *given)):
        torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="linear_token_log_probs: chunk_bytes must be at least .*, got 1204"):
        FusedTokenHead(chunk_size=1)(*given[:3])
    with pytest.raises(ValueError, match="FusedTokenHead: chunk_size must be an int >= 1 or None, got 0"):
        FusedTokenHead(chunk_size=0)
    with pytest.raises(ValueError, match="impl_backend must be 'torch', got 'liger' and gigpo_fast's head, two fused heads"):
        FusedTokenHead(impl_backend="liger")


def tiny(kind: str = "qwen2") -> nn.Module:
    """A model of a class of its own, since verl patches classes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **MODELS.get(kind, {})))
    if kind == "phi":
        nn.init.normal_(model.lm_head.bias)
    model.__class__ = type(f"Tiny{type(model).__name__}", (type(model),), {})
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, SIZES["vocab_size"], (3, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(12).expand(3, 12)}


def run(model: nn.Module, temperature: float = 0.8, **more) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Through the forward that verl chose: log-probs, entropy and the gradient of every parameter, prompts without upstream gradient."""
    model.zero_grad()
    output = model(**batch(), temperature=temperature, return_dict=True, use_cache=False, **more)
    upstream = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    upstream[:, :5] = 0
    (output.log_probs * upstream + 0.1 * output.entropy * upstream).sum().backward()
    return (
        output.log_probs.detach(),
        output.entropy.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def from_logits(model: nn.Module, temperature: float = 0.8):
    """The same by the model's own logits."""
    model.zero_grad()
    given = batch()
    log_p = torch.log_softmax(model(**given, use_cache=False).logits / temperature, -1)
    labels = given["input_ids"].roll(-1, dims=-1)
    log_probs, entropy = log_p.gather(-1, labels[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    upstream = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    upstream[:, :5] = 0
    (log_probs * upstream + 0.1 * entropy * upstream).sum().backward()
    return log_probs.detach(), entropy.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, want) -> None:
    torch.testing.assert_close(got[:2], want[:2], rtol=1e-4, atol=1e-5)
    assert got[2].keys() == want[2].keys()
    for name, truth in want[2].items():
        torch.testing.assert_close(
            got[2][name], truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()) + 1e-7, msg=lambda t, n=name: f"{n}: {t}"
        )


def patched(model: nn.Module, backend: str = "torch") -> nn.Module:
    monkey_patch.patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend=backend)
    return model


def test_a_model_that_verl_has_patched():
    want = run(patched(tiny()))
    with use_fused_head():
        model = patched(tiny())
        assert torch_functional.FusedLinearForPPO is not FusedLinearForPPO
        got = run(model)
    assert_same(got, want)
    assert_same(got, from_logits(tiny()))
    assert torch_functional.FusedLinearForPPO is FusedLinearForPPO
    assert_same(run(model), want)  # verl's own head again


def test_labels_that_the_engine_has_shifted():
    labels = torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(5))
    want = run(patched(tiny()), shift_labels=labels)
    with use_fused_head():
        assert_same(run(patched(tiny()), shift_labels=labels), want)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_model_does_to_its_logits(kind):
    truth = from_logits(tiny(kind))
    with use_fused_head():
        assert_same(run(patched(tiny(kind))), truth)
    stock = run(patched(tiny(kind)))  # verl's own head multiplies by the weight and no more
    assert torch.allclose(stock[0], truth[0], atol=1e-3) is (kind not in STOCK_IGNORES)


def test_refusals(monkeypatch):
    with use_fused_head():
        for backend in ("triton", "liger"):
            with pytest.raises(
                ValueError, match=f"impl_backend must be 'torch', got '{backend}' for .* and use_fused_head\\(\\), two fused"
            ):
                patched(tiny(), backend)
        with pytest.raises(ValueError, match="use_fused_head: FusedLinearForPPO must be verl's own, got gigpo_fast.integrations.verl_head"):
            use_fused_head()
        with pytest.raises(ValueError, match="policy_head: model must be of a known architecture .*, got model_type 'gptj'"):
            patched(
                AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", vocab_size=32, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
            )
        with pytest.warns(UserWarning, match=r"use_fused_head: TinyQwen2ForCausalLM runs without it \(use_fused_kernels=False"):
            monkey_patch.patch_forward_with_backends(tiny())
    early = patched(tiny())
    with use_fused_head():
        with pytest.raises(
            ValueError, match="the model's forward must be one that verl chose after use_fused_head\\(\\), got one from before"
        ):
            run(early)
    monkeypatch.setattr(verl, "__version__", "0.8.0")
    with pytest.raises(ImportError, match="use_fused_head: verl must be 0.9.1, got 0.8.0"):
        use_fused_head()
    assert torch_functional.FusedLinearForPPO is FusedLinearForPPO


def test_under_autocast():
    """As verl's FSDP engine runs it: float32 weights, bfloat16 products. Ours is no further from float32 than verl's head."""
    model = tiny()
    exact = from_logits(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = run(patched(copy.deepcopy(model)))
        with use_fused_head():
            got = run(patched(copy.deepcopy(model)))
    for mine, theirs, truth in zip(got[:2], want[:2], exact[:2]):
        assert (mine - truth).norm() <= (theirs - truth).norm() * 1.05


def test_an_actor_step():
    """Model, head and ppo_loss together, stock against ours: every parameter's gradient."""
    found = []
    rows, prompt, answer = 3, 5, 7
    generator = torch.Generator().manual_seed(3)
    jagged = lambda rows: torch.nested.nested_tensor(list(rows), layout=torch.jagged)  # noqa: E731
    fields = {
        "prompts": jagged(torch.ones(rows, prompt, dtype=torch.int64)),
        "responses": jagged(torch.ones(rows, answer, dtype=torch.int64)),
        "response_mask": jagged(torch.rand(rows, answer, generator=generator) < 0.7),
        "advantages": jagged(torch.randn(rows, answer, generator=generator)),
        "ref_log_prob": jagged(-4 + torch.randn(rows, answer, generator=generator)),
        "old_log_probs": jagged(-4 + torch.randn(rows, answer, generator=generator)),
    }
    data = TensorDict(fields, batch_size=[rows])
    for name, value in {"dp_size": 1, "batch_num_tokens": 14, "global_batch_size": rows}.items():
        data[name] = NonTensorData(value)
    config = actor_config("vanilla", use_kl_loss=True, kl_loss_coef=0.1, entropy_coeff=0.05)
    for loss, head in ((losses.ppo_loss, contextlib.nullcontext), (ppo_loss, use_fused_head)):
        with head():
            model = patched(tiny())
            output = model(**batch(), temperature=0.8, return_dict=True, use_cache=False)
            offsets = torch.arange(0, 37, prompt + answer)
            nested = {
                name: torch.nested.nested_tensor_from_jagged(output[name].flatten(), offsets=offsets) for name in ("log_probs", "entropy")
            }
            value, metrics = loss(config, nested, data)
            value.backward()
        found.append((value.detach(), metrics["actor/entropy_loss"].values, {name: p.grad for name, p in model.named_parameters()}))
    want, got = ((value, torch.tensor(entropy), gradients) for value, entropy, gradients in found)
    assert_same(got, want)
