"""The transformers adapter: hidden states and head give the logits, log-probs and gradients of the model's own forward."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gigpo_fast.integrations.transformers import ARCHITECTURES, add_head_call, hidden_and_head, policy_head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs

transformers = pytest.importorskip("transformers")
FROM_5 = int(transformers.__version__.split(".")[0]) >= 5

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
# Values at which a feature that is left out shows: defaults are often neutral.
FEATURES = {
    "cohere": {"logit_scale": 3.0},
    "cohere2": {"logit_scale": 3.0},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 0.25},
    "granitemoe": {"logits_scaling": 0.25},
}
EXPERTS = {"gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}
IMAGE, START, END = 40, 41, 42


def make(kind: str, **more) -> nn.Module:
    settings = {**SIZES, **FEATURES.get(kind, {}), **more}
    if kind in EXPERTS:
        settings |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
        settings |= {"shared_expert_intermediate_size": 8}
    auto = transformers.AutoModelForCausalLM
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        auto = transformers.AutoModelForImageTextToText
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        settings |= {"rope_parameters" if FROM_5 else "rope_scaling": rope}
        vision = {
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "out_hidden_size": 16,
            "embed_dim": 16,
            "mlp_ratio": 1,
        }
        ids = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
        settings = {"text_config": settings, "vision_config": vision, **ids}
    torch.manual_seed(3)
    model = auto.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():  # as initialised, logits are too small for a softcap to show
        model.get_output_embeddings().weight.normal_()
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    return model


def inputs_of(kind: str) -> dict:
    torch.manual_seed(4)
    ids, mask = torch.randint(3, 40, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :2] = 0  # left padding
    if kind not in ("qwen2_vl", "qwen2_5_vl"):
        return {"input_ids": ids, "attention_mask": mask}
    ids[:, 2:5] = torch.tensor([START, IMAGE, END])
    pixels = torch.randn(8, 3 * 2 * 14 * 14)  # two images of 2 x 2 patches, merged to one token each
    images = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2, 2]] * 2)}
    types = {"mm_token_type_ids": (ids == IMAGE).int()} if FROM_5 else {}
    return {"input_ids": ids, "attention_mask": mask, **images, **types}


def gradients(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both_ways(kind: str, change=lambda head: head, **more):
    """(log-probs and entropy, gradients) by the model's own logits and by hidden states and head."""
    model, inputs = make(kind, **more), inputs_of(kind)
    targets = inputs["input_ids"][:, 1:]
    upstream = torch.linspace(-1, 1, targets.numel()).view(targets.shape)
    found = []
    for fused in (False, True):
        if fused:
            hidden, head, _ = hidden_and_head(model, **inputs)
            values = linear_token_log_probs(hidden[:, :-1], change(head), targets, temperature=0.7)
        else:
            values = token_log_probs(model(**inputs).logits[:, :-1], targets, temperature=0.7)
        found.append((values, gradients(model, ((values.log_probs + 0.3 * values.entropy) * upstream).sum())))
    return found


def assert_equal(found) -> None:
    (want, want_gradients), (got, got_gradients) = found
    torch.testing.assert_close(got.log_probs, want.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.entropy, want.entropy, rtol=1e-5, atol=1e-5)
    assert got_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())), msg=name)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_equals_the_models_own_logits(kind):
    assert_equal(both_ways(kind))


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_a_tied_and_an_untied_head(kind):
    for tied in (True, False):
        model = make(kind, tie_word_embeddings=tied)
        assert (policy_head(model).weight is model.get_input_embeddings().weight) is tied
        assert_equal(both_ways(kind, tie_word_embeddings=tied))


def test_the_features_are_those_of_the_config():
    assert policy_head(make("cohere")).logit_scale == 3.0
    assert policy_head(make("granite")).logit_scale == 4.0
    assert policy_head(make("gemma2")).softcap == 0.5
    assert policy_head(make("gemma2", final_logit_softcapping=None)).softcap is None
    assert policy_head(make("phi")).bias is not None
    assert policy_head(make("qwen2"), vocab_size=47).vocab_size == 47


@pytest.mark.parametrize(
    "kind, change",
    [
        ("gemma2", {"softcap": None}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logit_scale": 1.0}),
        ("phi", {"bias": None}),
        ("qwen2", {"vocab_size": 49}),
    ],
)
def test_a_wrong_feature_is_seen(kind, change):
    """The comparison above would fail if a feature were lost on the way."""
    with pytest.raises(AssertionError):
        assert_equal(both_ways(kind, lambda head: head._replace(**change)))


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_the_auxiliary_loss_is_the_models_own(kind):
    model, inputs = make(kind), inputs_of(kind)
    want = model(**inputs, output_router_logits=True).aux_loss
    got = hidden_and_head(model, **inputs, auxiliary=True).auxiliary_loss
    assert float(want.detach()) > 0
    torch.testing.assert_close(got, want)
    want, got = gradients(model, want), gradients(model, got)
    assert want.keys() == got.keys() and want
    for name in want:
        torch.testing.assert_close(got[name], want[name], msg=name)
    assert hidden_and_head(model, **inputs).auxiliary_loss is None


def test_a_padded_vocabulary_leaves_the_softmax():
    model, inputs = make("qwen2"), inputs_of("qwen2")
    targets = inputs["input_ids"][:, 1:]
    hidden, head, _ = hidden_and_head(model, vocab_size=45, **inputs)
    logits = model(**inputs).logits[:, :-1, :45]
    want = torch.log_softmax(logits, -1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(linear_token_log_probs(hidden[:, :-1], head, targets).log_probs, want)


def test_head_call_runs_inside_the_forward():
    model, inputs = make("qwen2_moe"), inputs_of("qwen2_moe")
    before = model(**inputs).logits
    add_head_call(model)
    add_head_call(model)  # once is enough
    seen = []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    assert torch.equal(model(**inputs).logits, before)
    hidden, head, balance = model(**inputs, auxiliary=True, head_call=lambda *found: found)
    assert len(seen) == 2 and seen[1][0] is hidden
    assert torch.equal(F.linear(hidden, head.weight), before) and float(balance.detach()) > 0
    assert "head_call" not in inspect.signature(type(make("qwen2_moe")).forward).parameters  # no other model is touched
    with torch.no_grad():
        model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=2, do_sample=False)
    from_ids = model(inputs["input_ids"], head_call=lambda hidden, head, balance: hidden)
    assert from_ids.shape == hidden.shape


class Around(nn.Module):
    def __init__(self, module: nn.Module, **attributes) -> None:
        super().__init__()
        self.module = module
        for name, value in attributes.items():
            setattr(self, name, value)


def with_adapter_on_the_head() -> nn.Module:
    model = make("qwen2")
    model.lm_head.base_layer = nn.Linear(16, 50)
    return model


def classifier() -> nn.Module:
    return transformers.AutoModelForSequenceClassification.from_config(transformers.AutoConfig.for_model("qwen2", **SIZES))


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: make("nemotron"), r"known architecture \(cohere, .*\), got model_type 'nemotron'; read what its forward does"),
        (
            lambda: make("qwen2", num_nextn_predict_layers=1),
            r"one token at a time, got multi-token prediction \(qwen2, num_nextn_predict_layers=1\)",
        ),
        (lambda: make("qwen2", logit_scale=2.0), r"'qwen2', which does no such thing to its logits, got 'logit_scale=2.0'; remove"),
        (with_adapter_on_the_head, r"plain linear layer, got Linear, an adapter around one; merge the adapter, or take the head out of its target_modules"),
        (classifier, r"Qwen2ForSequenceClassification, which has no output head; load it with AutoModelForCausalLM"),
        (lambda: Around(make("qwen2"), v_head=nn.Linear(16, 1)), r"got Around, one with a value head; pass model.pretrained_model"),
        (lambda: Around(make("qwen2")), r"got Around around one; add_head_call\(model\) before wrapping"),
        (lambda: nn.Linear(3, 3), r"a causal LM of transformers, got Linear without config or head"),
    ],
)
def test_what_is_refused_and_by_which_name(model, message):
    model = model()
    for function in (policy_head, hidden_and_head, add_head_call):
        with pytest.raises((ValueError, TypeError), match=message) as refused:
            function(model)
        assert str(refused.value).startswith(function.__name__)


def test_inputs_that_concern_logits_are_refused():
    model, inputs = make("qwen2"), inputs_of("qwen2")
    with pytest.raises(ValueError, match=r"hidden_and_head: inputs must be what the model's layers read, got also \['labels'\]"):
        hidden_and_head(model, **inputs, labels=inputs["input_ids"])
    with pytest.raises(ValueError, match="auxiliary must be False for this model, got Qwen2ForCausalLM"):
        hidden_and_head(model, **inputs, auxiliary=True)
