"""Causal LMs in wrappers: what a wrapper does acts in every way in, copies run their own weights, what would be lost is refused by name.

The wrappers here are small ones that work as PEFT, accelerate and TRL do; tests/frameworks holds the same with the packages themselves.
"""

import copy
import functools
import io
import pickle
import types

import pytest
import torch
from torch import nn

from gigpo_fast.integrations.transformers import add_head_call, hidden_and_head, policy_head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from tests.test_integrations_transformers import inputs_of, make

transformers = pytest.importorskip("transformers")
INPUTS = inputs_of("qwen2")
IDS = INPUTS["input_ids"]


def logits_of(hidden, head, balance=None) -> torch.Tensor:
    return nn.functional.linear(hidden, head.weight.to(hidden.dtype))


def prepared() -> nn.Module:
    model = make("qwen2")
    add_head_call(model)
    return model


def answers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model says on every way in."""
    hidden, head, _ = hidden_and_head(model, **INPUTS)
    with torch.no_grad():
        said = model.generate(IDS[1:, :4], max_new_tokens=6, do_sample=False, pad_token_id=0)
    found = {
        "forward": model(**INPUTS).logits,
        "positions": model(IDS, INPUTS["attention_mask"]).logits,
        "head_call": model(**INPUTS, head_call=logits_of),
        "head_call, positions": model(IDS, INPUTS["attention_mask"], head_call=logits_of),
        "hidden_and_head": logits_of(hidden, head),
        "policy_head": policy_head(model).weight,
        "generate": said,
    }
    return {way: value.detach().clone() for way, value in found.items()}


# ---- copies


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state_dict_in_a_new_one(model: nn.Module) -> nn.Module:
    new = type(model)(model.config).eval()
    new.load_state_dict(model.state_dict())
    return new


def shell_with_the_state(model: nn.Module) -> nn.Module:
    """As libraries do that copy without calling __init__."""
    new = model.__class__.__new__(model.__class__)
    new.__dict__.update(copy.deepcopy(model.__dict__))
    return new


def through_a_folder(model: nn.Module, folder) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


COPIES = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a deepcopy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "state_dict": state_dict_in_a_new_one,
    "__class__.__new__": shell_with_the_state,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


CASES = [(name, "plain") for name in (*COPIES, "save_pretrained")]
CASES += [("deepcopy", "autocast, then add_head_call"), ("deepcopy of a deepcopy", "add_head_call, then autocast")]


@pytest.mark.parametrize("name, wrap", CASES)
def test_a_copy_runs_its_own_weights_on_every_way_in(name, wrap, tmp_path):
    policy = make("qwen2")
    if wrap.startswith("autocast"):
        autocast(policy)
    add_head_call(policy)
    if wrap.endswith("autocast"):
        autocast(policy)
    before = answers(policy)
    copied = through_a_folder(policy, tmp_path) if name == "save_pretrained" else COPIES[name](policy)
    with torch.no_grad():
        for parameter in policy.parameters():  # the policy trains on
            parameter.mul_(1.5)
    of_copy, of_policy = answers(copied), answers(policy)
    for way, want in before.items():
        assert torch.equal(of_copy[way], want), way
        assert not torch.equal(of_policy[way], want), way


def test_copies_stay_what_the_model_is():
    policy, plain = prepared(), make("qwen2")
    for model in (policy, copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert isinstance(model, transformers.Qwen2ForCausalLM) and type(model).__name__ == "Qwen2ForCausalLM"
        assert str(type(model)) == str(type(plain)) and model.loss_type == plain.loss_type
    assert type(plain) is transformers.Qwen2ForCausalLM is not type(policy)


# ---- a forward that was replaced on the object


def autocast(model: nn.Module) -> nn.Module:
    """What accelerate's prepare does to a model under mixed precision, results left in bfloat16."""
    model.forward = types.MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    return model


def dtypes_of_layers(model: nn.Module, call) -> set[torch.dtype]:
    seen = set()
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, arguments, output: seen.add(output.dtype))
    call()
    handle.remove()
    return seen


@pytest.mark.parametrize("order", ["autocast, then add_head_call", "add_head_call, then autocast", "hidden_and_head alone"])
def test_an_autocast_around_the_forward_acts_in_either_order(order):
    model = make("qwen2")
    if order.startswith("add"):
        add_head_call(model)
    autocast(model)
    if order.startswith("autocast"):
        add_head_call(model)
    assert dtypes_of_layers(model, lambda: model(**INPUTS)) == {torch.bfloat16}
    assert dtypes_of_layers(model, lambda: hidden_and_head(model, **INPUTS)) == {torch.bfloat16}
    found = []

    def head_call(hidden, head, balance):
        found.append((hidden.dtype, torch.is_autocast_enabled("cpu")))
        return linear_token_log_probs(hidden, head, IDS).log_probs

    own = token_log_probs(model(**INPUTS).logits.float(), IDS).log_probs
    assert dtypes_of_layers(model, lambda: model(**INPUTS, head_call=head_call)) == {torch.bfloat16}
    assert found[0][1], "the head's loss runs inside the autocast too"
    hidden, head, _ = hidden_and_head(model, **INPUTS)
    assert hidden.dtype == head.weight.dtype == torch.float32 and head.weight is model.lm_head.weight
    exact = token_log_probs(logits_of(hidden, head), IDS).log_probs
    torch.testing.assert_close(linear_token_log_probs(hidden, head, IDS).log_probs, exact, rtol=1e-5, atol=1e-5)
    bf16 = torch.finfo(torch.bfloat16).eps * float(model(**INPUTS).logits.detach().abs().max())  # the model's own logits are rounded to it
    torch.testing.assert_close(exact, own, rtol=0, atol=4 * bf16)


def test_a_forward_replaced_by_something_unknown_is_refused():
    """Either advice of the message works."""

    def twice(self, *args, **inputs):
        with torch.random.fork_rng():
            return type(self).forward(self, *args, **inputs)

    for function in (add_head_call, functools.partial(hidden_and_head, **INPUTS)):
        model = make("qwen2")
        model.forward = types.MethodType(twice, model)
        with pytest.raises(TypeError, match=r"model.forward must be its class's own, .*, got tests.test_wrapped_models.*twice, put in its"):
            function(model)
        assert type(model) is transformers.Qwen2ForCausalLM, "nothing was changed"
        del model.forward
        function(model)
        model = prepared()
        model.forward = types.MethodType(twice, model)
        function(model)
        assert torch.equal(model(**INPUTS, head_call=logits_of), make("qwen2")(**INPUTS).logits)


def test_hooks_before_the_forward_act():
    model = make("qwen2")
    model.register_forward_pre_hook(lambda module, args, inputs: (args, {**inputs, "input_ids": IDS.flip(1)}), with_kwargs=True)
    hidden, head, _ = hidden_and_head(model, **INPUTS)
    assert torch.equal(logits_of(hidden, head), model(**INPUTS).logits)


@pytest.mark.parametrize("place", ["wrapper", "in place", "layers"])
def test_graphs_of_torch_compile_run(place):
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    model = make("qwen2")
    want = model(**INPUTS).logits
    wrapper = model
    if place == "wrapper":
        wrapper = torch.compile(model, backend=backend)
    elif place == "in place":
        model.compile(backend=backend)
    else:
        model.model.compile(backend=backend)
    hidden, head, _ = hidden_and_head(wrapper, **INPUTS)
    assert graphs and head.weight is model.lm_head.weight
    torch.testing.assert_close(logits_of(hidden, head), want, rtol=1e-5, atol=1e-5)
    calls = len(graphs)
    add_head_call(wrapper)
    torch.testing.assert_close(wrapper(**INPUTS, head_call=logits_of), want, rtol=1e-5, atol=1e-5)
    assert len(graphs) > calls or place == "layers"


# ---- keywords


@pytest.mark.parametrize("name", ["adapter_names", "alora_offsets", "task_ids", "attn_mask", "inputs_embed"])
def test_a_keyword_that_nothing_reads_is_refused(name):
    model = make("qwen2")
    with pytest.raises(ValueError, match=rf"hidden_and_head: inputs must be keywords of Qwen2Model.forward, got also \['{name}'\]; leave"):
        hidden_and_head(model, **INPUTS, **{name: [1]})
    add_head_call(model)
    with pytest.raises(ValueError, match=rf"inputs must be keywords of Qwen2Model.forward, got also \['{name}'\]"):
        model(**INPUTS, **{name: [1]}, head_call=logits_of)
    hidden_and_head(model, **INPUTS, **{name: None})


@pytest.mark.parametrize("name", ["labels", "shift_labels", "logits_to_keep", "return_dict", "num_items_in_batch"])
def test_a_keyword_that_concerns_logits_is_refused(name):
    for call in (functools.partial(hidden_and_head, make("qwen2")), functools.partial(prepared(), head_call=logits_of)):
        with pytest.raises(ValueError, match=rf"inputs must be what the model's layers read, got also \['{name}'\]; leave them out"):
            call(**INPUTS, **{name: 1})


def test_keywords_that_the_layers_read_are_passed():
    model = make("qwen2")
    positions = torch.arange(9).expand(2, 9) * 2
    more = {"position_ids": positions, "output_attentions": False, "past_key_values": transformers.DynamicCache()}
    hidden, head, _ = hidden_and_head(model, **INPUTS, **more)
    assert torch.equal(logits_of(hidden, head), model(**INPUTS, position_ids=positions).logits)
    embeds = model.get_input_embeddings()(IDS)
    hidden, head, _ = hidden_and_head(model, inputs_embeds=embeds, attention_mask=INPUTS["attention_mask"])
    assert torch.equal(logits_of(hidden, head), model(**INPUTS).logits)


# ---- PEFT's own forward


class BaseTuner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args, **inputs):
        return self.model(*args, **inputs)


class Regularised(BaseTuner):
    def forward(self, *args, **inputs):
        return self.model(*args, **inputs)


class Adapted(nn.Module):
    """A PeftModel whose forward does something of its own: it shifts the embeddings while it runs."""

    special_peft_forward_args = {"shift"}

    def __init__(self, model: nn.Module, tuner=BaseTuner) -> None:
        super().__init__()
        self.base_model, self.config, self.peft_config = tuner(model), model.config, {}

    def forward(self, shift: float = 0.5, **inputs):
        handle = self.base_model.model.get_input_embeddings().register_forward_hook(lambda module, args, output: output + shift)
        try:
            return self.base_model(**inputs)
        finally:
            handle.remove()


def test_what_an_adapters_forward_does_acts():
    model = Adapted(make("qwen2"))
    for inputs in (INPUTS, {**INPUTS, "shift": 2.0}):
        want = model(**inputs).logits
        BaseTuner._enable_peft_forward_hooks = None  # by which PEFT's tuners say that they read such keywords
        try:
            hidden, head, _ = hidden_and_head(model, **inputs)
        finally:
            del BaseTuner._enable_peft_forward_hooks
        assert torch.equal(logits_of(hidden, head), want)
        assert torch.equal(model(**inputs, head_call=logits_of), want)
    assert not torch.equal(want, make("qwen2")(**INPUTS).logits)
    with pytest.raises(ValueError, match=r"got also \['shift'\]"):
        hidden_and_head(model, **INPUTS, shift=1.0)


def test_an_adapter_whose_forward_adds_to_the_loss_is_refused():
    for function in (policy_head, hidden_and_head, add_head_call):
        with pytest.raises(ValueError, match="got Regularised of PEFT, whose forward does more than run the model; use LoRA"):
            function(Adapted(make("qwen2"), Regularised))
        function(Adapted(make("qwen2"), BaseTuner), **(INPUTS if function is hidden_and_head else {}))


class Forwarding(nn.Module):
    """As FSDP 1 and DeepSpeed's engine: it answers for the module inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


@pytest.mark.parametrize("inside", [make, lambda kind: Adapted(make(kind)), lambda kind: torch.compile(make(kind), backend="eager")])
def test_a_wrapper_that_answers_for_the_model_inside_is_no_model(inside):
    for function in (policy_head, hidden_and_head, add_head_call):
        with pytest.raises(TypeError, match=r"got Forwarding around one; add_head_call\(model\) before wrapping"):
            function(Forwarding(inside("qwen2")))


class Deaf(Adapted):
    def forward(self, head_call=None, auxiliary=False, **inputs):
        return self.base_model(**inputs)


def test_a_wrapper_that_drops_the_call_is_refused():
    with pytest.raises(TypeError, match="got CausalLMOutputWithPast from the forward of Deaf, which does not pass head_call on; pass the"):
        hidden_and_head(model := Deaf(make("qwen2")), **INPUTS)
    hidden_and_head(model.base_model.model, **INPUTS)
