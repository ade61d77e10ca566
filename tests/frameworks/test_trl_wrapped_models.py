"""The transformers adapter with the packages themselves: PEFT, accelerate, torchao, bitsandbytes."""

import copy

import pytest
import torch
from torch import nn

from gigpo_fast.integrations.transformers import add_head_call, hidden_and_head, policy_head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import LinearPolicyLoss
from gigpo_fast.recipes import recipe
from tests.test_integrations_transformers import gradients, inputs_of, make

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")
INPUTS = inputs_of("qwen2")
IDS = INPUTS["input_ids"]
LAYERS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
ADAPTERS = {
    "LoRA": lambda: peft.LoraConfig(r=2, **LAYERS),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, **LAYERS),
    "activated LoRA": lambda: peft.LoraConfig(r=2, alora_invocation_tokens=[int(IDS[0, 4])], **LAYERS),
    "IA3": lambda: peft.IA3Config(feedforward_modules=[], **LAYERS),
    "LoHa": lambda: peft.LoHaConfig(r=2, **LAYERS),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, **LAYERS),
    "VeRA": lambda: peft.VeraConfig(r=2, **LAYERS),
    "norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "embedding": lambda: peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["embed_tokens"]),
    "saved embedding": lambda: peft.LoraConfig(r=2, modules_to_save=["embed_tokens"], **LAYERS),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        task_type="CAUSAL_LM", token_indices=IDS.unique()[:5].tolist(), target_modules=["embed_tokens"]
    ),
    "trainable tokens in LoRA": lambda: peft.LoraConfig(r=2, trainable_token_indices=IDS.unique()[:5].tolist(), **LAYERS),
    "Poly": lambda: peft.PolyConfig(r=2, n_tasks=2, n_skills=2, **LAYERS),
}
REFUSED = {
    "prompt tuning": (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), r"prompt tuning \(PromptTuningConfig\)"),
    "prefix tuning": (lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), r"prompt tuning \(PrefixTuningConfig\)"),
    "P-tuning": (lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), r"prompt tuning \(PromptEncoderConfig\)"),
    "AdaLoRA": (lambda: peft.AdaLoraConfig(total_step=9, **LAYERS), "AdaLoraModel of PEFT, whose forward does more than run the model"),
    "LoRA on the head": (lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]), "Linear, an adapter around one"),
    "saved head": (lambda: peft.LoraConfig(modules_to_save=["lm_head"], **LAYERS), "ModulesToSaveWrapper, an adapter around one"),
    "tokens of a tied head": (
        lambda: peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 4], target_modules=["embed_tokens"]),
        "TrainableTokensLayer, an adapter around one",
    ),
    "parameters of the head": (
        lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=["lm_head.weight"]),
        "ParamWrapper, an adapter around one",
    ),
}


def adapted(name: str, **more) -> nn.Module:
    """A model with adapters that do something, which fresh ones do not."""
    model = peft.get_peft_model(make("qwen2", **more), ADAPTERS[name]())
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def assert_both_ways(model: nn.Module, **inputs) -> torch.Tensor:
    """Log-probs and gradients by the model's own logits, by hidden_and_head, and inside the forward."""
    inputs = {**INPUTS, **inputs}
    upstream = torch.linspace(-1, 1, IDS.numel()).view(IDS.shape)
    want = token_log_probs(model(**inputs).logits, IDS).log_probs
    want_gradients = gradients(model, (want * upstream).sum())
    assert want_gradients

    def head_call(hidden, head, balance):
        return linear_token_log_probs(hidden, head, IDS).log_probs

    add = lambda: add_head_call(model) or model(**inputs, head_call=head_call)  # noqa: E731
    for way in (lambda: head_call(*hidden_and_head(model, **inputs)), add):
        got = way()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        found = gradients(model, (got * upstream).sum())
        assert found.keys() == want_gradients.keys()
        for key, gradient in want_gradients.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())), msg=key)
    return want.detach()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_acts_as_in_the_models_own_forward(name):
    model = adapted(name)
    more = {"task_ids": torch.tensor([0, 1])} if name == "Poly" else {}
    with torch.no_grad():
        before = token_log_probs(make("qwen2")(**INPUTS).logits, IDS).log_probs
    assert not torch.allclose(assert_both_ways(model, **more), before, atol=1e-3), "the adapter does nothing: nothing was tested"


def test_rows_with_adapters_of_their_own():
    model = adapted("LoRA")
    model.add_adapter("other", ADAPTERS["LoRA"]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".other." in name:
                parameter.normal_()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    found = [assert_both_ways(model, adapter_names=names) for names in (["default", "other"], ["__base__", "default"])]
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    with pytest.raises(ValueError, match=r"inputs must be keywords of Qwen2Model.forward, got also \['task_ids'\]"):
        hidden_and_head(model, **INPUTS, task_ids=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got also \['adapter_names'\]"):  # of a tuner that drops them
        hidden_and_head(adapted("IA3"), **INPUTS, adapter_names=["default", "default"])


def test_adapters_that_are_switched_off():
    model = adapted("activated LoRA")
    with model.disable_adapter(), torch.no_grad():
        hidden, head, _ = hidden_and_head(model, **INPUTS)
        torch.testing.assert_close(nn.functional.linear(hidden, head.weight), make("qwen2")(**INPUTS).logits)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(name):
    config, message = REFUSED[name]
    model = peft.get_peft_model(make("qwen2", tie_word_embeddings="tied" in name), config())
    for function in (policy_head, hidden_and_head, add_head_call):
        with pytest.raises((TypeError, ValueError), match=f"{function.__name__}: model must be .*, got {message}"):
            function(model)


@pytest.mark.parametrize("name", ["LoRA", "DoRA"])
def test_merged_adapters_run_their_own_weights(name):
    model = adapted(name)
    add_head_call(model)
    want = token_log_probs(model(**INPUTS).logits, IDS).log_probs.detach()
    other = copy.deepcopy(model)
    merged = other.merge_and_unload()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    got = merged(**INPUTS, head_call=lambda hidden, head, balance: linear_token_log_probs(hidden, head, IDS).log_probs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(token_log_probs(merged(**INPUTS).logits, IDS).log_probs, want, rtol=1e-4, atol=1e-4)


# ---- accelerate


@pytest.fixture(scope="module")
def accelerator():
    accelerate.state.AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    accelerate.state.AcceleratorState._reset_state(True)


def dtypes(model: nn.Module, call) -> set[torch.dtype]:
    seen = set()
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp.down_proj"))
    handle = layer.register_forward_hook(lambda module, arguments, output: seen.add(output.dtype))
    call()
    handle.remove()
    return seen


@pytest.mark.parametrize("order", ["prepare, then add", "add, then prepare", "hidden_and_head alone", "adapter", "adapter on prepared"])
def test_mixed_precision_acts_in_either_order(accelerator, order):
    model = make("qwen2")
    if order == "add, then prepare":
        add_head_call(model)
    if order == "adapter":
        model = adapted("LoRA")
    model = accelerator.prepare_model(model)
    if order == "adapter on prepared":
        model = peft.get_peft_model(model, ADAPTERS["LoRA"]())
    if order == "prepare, then add":
        add_head_call(model)
    logits = model(**INPUTS).logits
    assert logits.dtype == torch.float32 and dtypes(model, lambda: model(**INPUTS)) == {torch.bfloat16}
    assert dtypes(model, lambda: hidden_and_head(model, **INPUTS)) == {torch.bfloat16}
    hidden, head, _ = hidden_and_head(model, **INPUTS)
    # The layers agree bit by bit; the model's own logits are rounded to bfloat16.
    assert torch.equal(nn.functional.linear(hidden.bfloat16(), head.weight.bfloat16()).float(), logits)
    assert head.weight.dtype == torch.float32 and hidden.dtype == torch.float32
    got = model(**INPUTS, head_call=lambda hidden, head, balance: (hidden.dtype, torch.is_autocast_enabled("cpu")))
    assert got[1]
    for keep in (True, False):
        inside = accelerator.unwrap_model(model, keep_fp32_wrapper=keep)
        want = {torch.bfloat16 if keep or order == "adapter on prepared" else torch.float32}
        assert dtypes(inside, lambda inside=inside: hidden_and_head(inside, **INPUTS)) == want
        assert dtypes(inside, lambda inside=inside: inside(**INPUTS, head_call=lambda *found: found)) == want


@pytest.mark.parametrize("order", ["prepare, then add", "add, then prepare"])
def test_a_copy_of_a_prepared_model_runs_its_own_weights(accelerator, order):
    model = make("qwen2")
    if order == "add, then prepare":
        add_head_call(model)
    model = accelerator.prepare_model(model)
    add_head_call(model)
    call = lambda model: model(**INPUTS, head_call=lambda hidden, head, balance: nn.functional.linear(hidden, head.weight))  # noqa: E731
    own, inside = model(**INPUTS).logits.detach(), call(model).detach()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(reference(**INPUTS).logits, own) and torch.equal(call(reference), inside)
    assert not torch.equal(model(**INPUTS).logits, own) and not torch.equal(call(model), inside)


def test_an_offloaded_head_is_refused_and_offloaded_layers_are_not(tmp_path):
    want = make("qwen2", tie_word_embeddings=False)(**INPUTS).logits.detach()
    model = accelerate.cpu_offload(make("qwen2", tie_word_embeddings=False), execution_device=torch.device("cpu"))
    message = "Linear with an offloaded weight, which is there during its own forward only; keep the head in memory: give it, .* device_map"
    for function in (policy_head, lambda model: hidden_and_head(model, **INPUTS), add_head_call):
        with pytest.raises(TypeError, match=message):
            function(model)
    with pytest.raises(TypeError, match=message):
        LinearPolicyLoss(model.lm_head, recipe("grpo").objective)(
            torch.randn(9, 16), IDS[0], torch.ones(9), torch.ones(9, dtype=torch.bool), old_log_probs=torch.zeros(9)
        )
    device_map = {"lm_head": "cpu", "model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map |= {"model.layers.0": "disk", "model.layers.1": "cpu"}
    model = accelerate.dispatch_model(make("qwen2", tie_word_embeddings=False), device_map, offload_dir=tmp_path, force_hooks=True)
    assert model.model.layers[0].mlp.down_proj.weight.is_meta
    hidden, head, _ = hidden_and_head(model, **INPUTS)
    torch.testing.assert_close(nn.functional.linear(hidden, head.weight), want)
    torch.testing.assert_close(model(**INPUTS).logits, want)


# ---- TRL


@pytest.mark.parametrize("prepare", [False, True])
def test_trls_own_head_and_ours_on_one_model(accelerator, prepare):
    """TRL's forward stays what it is on its model; copies run their own weights, which TRL's would not."""
    utils = pytest.importorskip("trl.trainer.utils")
    model = make("qwen2")
    utils.add_fused_lm_head(model, temperature=0.7)
    if prepare:
        model = accelerator.prepare_model(model)
    before = model(**INPUTS, labels=IDS, fused_lm_head=True).log_probs
    own = model(**INPUTS).logits.detach()
    hidden_and_head(model, **INPUTS)
    assert torch.equal(model(**INPUTS, labels=IDS, fused_lm_head=True).log_probs, before) and torch.equal(model(**INPUTS).logits, own)
    assert dtypes(model, lambda: hidden_and_head(model, **INPUTS)) == {torch.bfloat16 if prepare else torch.float32}
    reference = copy.deepcopy(model)
    hidden = hidden_and_head(reference, **INPUTS).hidden.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(reference(**INPUTS).logits, own) and torch.equal(hidden_and_head(reference, **INPUTS).hidden, hidden)
    with pytest.raises(ValueError, match="fused_lm_head must be False with head_call and on a copy .*; call trl.trainer.utils.add_fused"):
        reference(**INPUTS, labels=IDS, fused_lm_head=True)
    utils.add_fused_lm_head(reference, temperature=0.7)
    after = reference(**INPUTS, labels=IDS, fused_lm_head=True).log_probs
    assert after.shape == before.shape and (prepare or torch.equal(after, before))  # TRL's goes around an autocast that is there already


# ---- quantised heads


def score(weight: torch.Tensor) -> torch.Tensor:
    return linear_token_log_probs(torch.ones(3, weight.shape[1]), weight, torch.arange(3)).log_probs


def test_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    model = make("qwen2")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "lm_head")
    weight = model.lm_head.weight
    assert type(model.lm_head) is nn.Linear and weight.dtype == torch.float32
    message = r"must be a plain tensor, got Int8Tensor, a tensor subclass .*; dequantise the head \(torchao: weight.dequantize\(\)\)"
    for function in (policy_head, lambda model: hidden_and_head(model, **INPUTS), add_head_call):
        with pytest.raises(TypeError, match=message):
            function(model)
    with pytest.raises(TypeError, match=message):
        score(weight)
    assert torch.isfinite(score(weight.dequantize())).all()
    model.lm_head.weight = nn.Parameter(weight.dequantize())
    policy_head(model)
    model = make("qwen2", tie_word_embeddings=False)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=lambda module, name: name.endswith("proj"))
    hidden, head, _ = hidden_and_head(model, **INPUTS)  # quantised layers are the model's own affair
    torch.testing.assert_close(nn.functional.linear(hidden, head.weight), model(**INPUTS).logits)


@pytest.mark.parametrize("kind", ["Linear8bitLt", "Linear4bit"])
def test_bitsandbytes(kind):
    layers = pytest.importorskip("bitsandbytes").nn
    model = make("qwen2")
    model.lm_head = getattr(layers, kind)(16, 50, bias=False)
    for function in (policy_head, add_head_call):
        with pytest.raises(TypeError, match=f"got {kind}, whose forward is its own, as that of a quantised layer; take the head out of the"):
            function(model)
