"""A causal language model of transformers as hidden states, output head and auxiliary loss; no class is patched.

What a model does between its last hidden state and its logits differs between architectures and is written in its forward alone. So the
architectures are listed with what each does, and one that is not listed is refused: a feature that is missed would train another model.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from ..head import Head
from ..linear_head import check_linear, check_plain_weight
from .transformers_wrappers import causal_lm, check_inputs, is_wrapped, layers_of, put_inside, taken_by_peft

_Config = Any  # of transformers; its type is not imported, since nothing but attributes is read


class HiddenStates(NamedTuple):
    """What a loss needs of a model's forward."""

    hidden: Tensor  # (B, T, H), position t predicts token t + 1; nothing is shifted
    head: Head
    auxiliary_loss: Tensor | None  # 0-dim, load balancing of a mixture of experts, not yet times its coefficient


class _Logits(NamedTuple):
    """What an architecture does to its logits after the linear head, as names of its config."""

    scale: str | None = None  # logits * config.X
    divisor: str | None = None  # logits / config.X
    softcap: str | None = None  # config.X * tanh(logits / config.X)


_SOFTCAP = _Logits(softcap="final_logit_softcapping")
_PLAIN = ("gemma", "glm4", "gpt2", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2")
_EXPERTS = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
_VISION = ("qwen2_vl", "qwen2_5_vl")
ARCHITECTURES: dict[str, _Logits] = {
    **dict.fromkeys((*_PLAIN, *_EXPERTS, *_VISION), _Logits()),
    **dict.fromkeys(("gemma2", "gemma3_text"), _SOFTCAP),
    **dict.fromkeys(("cohere", "cohere2"), _Logits(scale="logit_scale")),
    **dict.fromkeys(("granite", "granitemoe"), _Logits(divisor="logits_scaling")),
}
# Names by which any config says that it does something to its logits, and names by which it says that it predicts further tokens.
_LOGIT_FEATURES = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier", "output_multiplier", "logits_scale")
_FURTHER_TOKENS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", "n_future_tokens")


def policy_head(model: nn.Module, *, vocab_size: int | None = None) -> Head:
    """The output head of a causal LM with everything the model does to its logits.

        logits = model(**inputs).logits                                   # of this head and the last hidden state:
        z = (hidden @ head.weight.T + head.bias) * head.logit_scale;  logits = softcap * tanh(z / softcap) if softcap else z

    `vocab_size` leaves out the padded columns of a weight: transformers and most trainers keep them in the softmax, so the default does.
    Raises by name for an architecture that is not in ARCHITECTURES, an adapter on the head, prompt tuning, a value head, further
    prediction heads, a head that is offloaded, quantised or made by a hook, and a model inside a wrapper that reduces gradients.
    """
    return _head("policy_head", causal_lm("policy_head", model), vocab_size)


def hidden_and_head(model: nn.Module, *, vocab_size: int | None = None, auxiliary: bool = False, **inputs: Any) -> HiddenStates:
    """The last hidden states of a causal LM and its head, for `linear_policy_loss` and `linear_token_log_probs`.

        hidden = model.base_model(**inputs).last_hidden_state             # what model(**inputs) multiplies by its head

    `model` is called as it is: PEFT's forward, accelerate's autocast and the graphs of torch.compile(model) act as in model(**inputs), and
    a model inside such wrappers is prepared by `add_head_call` for that. Outside of autocast its hidden states then come in the head's
    dtype. `inputs` are those of the model's forward but labels and logits_to_keep, which concern logits; keywords that nothing would read
    are refused. With `auxiliary` a mixture of experts also returns its load-balancing loss, the model's own function of its router logits.
    Errors as in `add_head_call`.
    """
    function = "hidden_and_head"
    causal = causal_lm(function, model)
    head = _head(function, causal, vocab_size)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    check_inputs(function, causal, inputs, taken=taken_by_peft(model))
    if model is causal and not is_wrapped(causal):
        return _states(head, _run_layers(function, causal, inputs, auxiliary))
    _prepare(function, causal)
    layers = model(**inputs, auxiliary=auxiliary, head_call=_layers_alone)
    if not isinstance(layers, _Layers):
        got = f"{type(layers).__name__} from the forward of {type(model).__name__}, which does not pass head_call on"
        checks.fail(function, "model", "a causal LM in wrappers that pass keywords on", got, "pass the model inside it", error=TypeError)
    if not torch.is_autocast_enabled(layers.hidden.device.type):
        layers = layers._replace(hidden=layers.hidden.to(head.weight.dtype))
    return _states(head, layers)


def add_head_call(model: nn.Module) -> None:
    """Let `model(**inputs, head_call=f)` return f(hidden_states, head, auxiliary_loss) from inside this model's forward.

    For losses under wrappers that work around the forward (DistributedDataParallel, autocast of accelerate): the head's gradient is then
    reduced with the others. This one object becomes one of a subclass, whose forward without `head_call` is what it was; copies, pickles
    and merged adapters stay so. Errors as in `policy_head`, and for a forward that something unknown has replaced on this object.
    """
    causal = causal_lm("add_head_call", model)
    _head("add_head_call", causal, None)  # refuse now what would be refused at the first step
    _prepare("add_head_call", causal)


class _Layers(NamedTuple):
    """What the layers below the head return."""

    hidden: Tensor
    balance: Tensor | None


def _layers_alone(hidden: Tensor, head: Head, balance: Tensor | None) -> _Layers:
    return _Layers(hidden, balance)  # without the head, whose weight a wrapper might cast and copy


def _states(head: Head, layers: _Layers) -> HiddenStates:
    return HiddenStates(layers.hidden, head, layers.balance)


def _run_layers(function: str, causal: nn.Module, inputs: dict[str, Any], auxiliary: bool) -> _Layers:
    if auxiliary:
        inputs = {**inputs, "output_router_logits": True}
    outputs = layers_of(causal)(**{"use_cache": False, **inputs})
    balance = _balance(function, causal, outputs, inputs.get("attention_mask")) if auxiliary else None
    return _Layers(outputs.last_hidden_state, balance)


def _prepare(function: str, causal: nn.Module) -> None:
    kind = type(causal)
    if getattr(kind, "takes_head_call", False):
        return
    made = _with_head_call(kind)
    check_inputs(function, causal, ())  # learns the keywords outside of a graph
    put_inside(function, causal, kind.forward, made.forward)
    causal.__class__ = made


@functools.cache
def _with_head_call(kind: type) -> type:
    """A subclass of a model's class whose forward takes `head_call`. By name it is the class itself: configs and files say that name."""
    signature = inspect.signature(kind.forward)
    names = list(signature.parameters)[1:]

    def forward(self: nn.Module, *args: Any, head_call: Callable | None = None, auxiliary: bool = False, **inputs: Any) -> Any:
        if head_call is None:
            return kind.forward(self, *args, **inputs)
        inputs = {name: value for name, value in (*zip(names, args), *inputs.items()) if value is not None}
        check_inputs("hidden_and_head", self, inputs)
        layers = _run_layers("hidden_and_head", self, inputs, auxiliary)
        return head_call(layers.hidden, _head("hidden_and_head", self, None), layers.balance)

    # generate() reads the signature. functools.wraps would leave __wrapped__, by which accelerate takes wrappers off.
    more = [p for name, p in inspect.signature(forward).parameters.items() if name in ("head_call", "auxiliary")]
    own = list(signature.parameters.values())
    last = own[-1:] if own[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    forward.__signature__ = signature.replace(parameters=[*own[: len(own) - len(last)], *more, *last])  # type: ignore[attr-defined]
    forward.__doc__ = kind.forward.__doc__

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return (_new, (kind,), *kind.__reduce_ex__(self, protocol)[2:])

    body = {"forward": forward, "takes_head_call": True, "__reduce_ex__": reduce, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), body | {"__qualname__": kind.__qualname__})


def _new(kind: type) -> nn.Module:
    """An empty model for pickle and copy to fill."""
    made = _with_head_call(kind)
    return made.__new__(made)


def _head(function: str, model: nn.Module, vocab_size: int | None) -> Head:
    kind, text = model.config.model_type, model.config.get_text_config()
    further = [f"{name}={getattr(text, name)}" for name in _FURTHER_TOKENS if getattr(text, name, None)]
    if further:
        checks.fail(
            function,
            "model",
            "one that predicts one token at a time",
            f"multi-token prediction ({kind}, {further[0]})",
            "set it to 0 in the config: a policy loss trains the next token's head alone, the others would silently fall behind",
        )
    if kind not in ARCHITECTURES:
        checks.fail(
            function,
            "model",
            f"of a known architecture ({', '.join(sorted(ARCHITECTURES))})",
            f"model_type {kind!r}",
            "read what its forward does after lm_head, add that to integrations.transformers.ARCHITECTURES and compare the log-probs",
        )
    does = ARCHITECTURES[kind]
    unknown = [f"{name}={getattr(text, name)}" for name in _LOGIT_FEATURES if getattr(text, name, None) is not None and name not in does]
    if unknown:
        checks.fail(
            function,
            "model.config",
            f"that of {kind!r}, which does no such thing to its logits",
            ", ".join(unknown),
            "remove it from the config",
        )
    linear = model.get_output_embeddings()
    if linear is None:
        checks.fail(
            function,
            "model",
            "a causal LM",
            f"{type(model).__name__}, which has no output head",
            "load it with AutoModelForCausalLM",
            error=TypeError,
        )
    expected = "one whose head is a plain linear layer"
    check_linear(function, "model", linear, expected)
    if not isinstance(linear, nn.Linear):
        got = f"{type(linear).__name__} on the head"
        checks.fail(function, "model", expected, got, "put an nn.Linear there: quantised heads have no gradient", error=TypeError)
    weight = linear.weight
    check_plain_weight(function, "the head's weight", weight)
    scale = 1.0
    if does.scale:
        scale = float(getattr(text, does.scale))
    elif does.divisor:
        scale = 1.0 / float(getattr(text, does.divisor))
    return Head(weight, linear.bias, scale, getattr(text, does.softcap) if does.softcap else None, vocab_size)


def _balance(function: str, model: nn.Module, outputs: Any, attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss by the function that the model's own forward calls."""
    own = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if own is None or getattr(outputs, "router_logits", None) is None:
        got = f"{type(model).__name__}, no mixture of experts that returns router logits"
        checks.fail(function, "auxiliary", "False for this model", got, "leave it out")
    return own(outputs.router_logits, model.num_experts, model.num_experts_per_tok, attention_mask)
