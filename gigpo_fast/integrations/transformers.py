"""A causal language model of transformers as hidden states, output head and auxiliary loss; no class is patched.

What a model does between its last hidden state and its logits differs between architectures and is written in its forward alone. So the
architectures are listed with what each does, and one that is not listed is refused: a feature that is missed would train another model.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import checks
from ..head import Head

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
    prediction heads, and a model inside a wrapper that reduces gradients.
    """
    return _head("policy_head", _causal_lm("policy_head", model), vocab_size)


def hidden_and_head(model: nn.Module, *, vocab_size: int | None = None, auxiliary: bool = False, **inputs: Any) -> HiddenStates:
    """The last hidden states of a causal LM and its head, for `linear_policy_loss` and `linear_token_log_probs`.

        hidden = model.base_model(**inputs).last_hidden_state             # what model(**inputs) multiplies by its head

    `inputs` are those of the model's forward but labels and logits_to_keep, which concern logits. With `auxiliary` a mixture of experts
    also returns its load-balancing loss, the model's own function of its router logits. Errors as in `policy_head`.
    """
    function = "hidden_and_head"
    causal = _causal_lm(function, model)
    head = _head(function, causal, vocab_size)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    unread = sorted({"labels", "shift_labels", "logits_to_keep", "return_dict"} & inputs.keys())
    if unread:
        checks.fail(function, "inputs", "what the model's layers read", f"also {unread}", "leave them out: no logits are formed here")
    if auxiliary:
        inputs["output_router_logits"] = True
    outputs = causal.base_model(**{"use_cache": False, **inputs})
    balance = _balance(function, causal, outputs, inputs.get("attention_mask")) if auxiliary else None
    return HiddenStates(outputs.last_hidden_state, head, balance)


def add_head_call(model: nn.Module) -> None:
    """Let `model(**inputs, head_call=f)` return f(hidden_states, head, auxiliary_loss) from inside this model's forward.

    For losses under wrappers that work around the forward (DistributedDataParallel, autocast of accelerate): the head's gradient is then
    reduced with the others. The forward of this one object is wrapped, once; without `head_call` it is what it was.
    """
    causal = _causal_lm("add_head_call", model)
    _head("add_head_call", causal, None)  # refuse now what would be refused at the first step
    inner = causal.forward
    if getattr(inner, "takes_head_call", False):
        return

    @functools.wraps(type(causal).forward)  # generate() reads the signature
    def forward(self: nn.Module, *args: Any, head_call: Callable | None = None, auxiliary: bool = False, **inputs: Any) -> Any:
        if head_call is None:
            return inner(*args, **inputs)
        if args:
            inputs["input_ids"] = args[0]
        return head_call(*hidden_and_head(self, auxiliary=auxiliary, **inputs))

    forward.takes_head_call = True  # type: ignore[attr-defined]
    causal.forward = types.MethodType(forward, causal)


def _causal_lm(function: str, model: nn.Module) -> nn.Module:
    """The transformers model itself, out of PEFT's wrapper; everything that is no plain causal LM is refused."""
    kind = type(model).__name__
    if hasattr(model, "v_head"):
        checks.fail(
            function,
            "model",
            "a causal LM",
            f"{kind}, one with a value head",
            "pass model.pretrained_model, and train the values by a loss of their own",
            error=TypeError,
        )
    if not hasattr(model, "config") and isinstance(getattr(model, "module", None), nn.Module):
        checks.fail(
            function,
            "model",
            "a causal LM",
            f"{kind} around one",
            "add_head_call(model) before wrapping, then call the wrapper with head_call: it reduces gradients in its own forward only",
            error=TypeError,
        )
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):  # the model inside also says which adapters it has
        if getattr(model, "active_peft_config", None) is not None and getattr(model.active_peft_config, "is_prompt_learning", False):
            name = type(model.active_peft_config).__name__
            checks.fail(
                function,
                "model",
                "a causal LM, or one with adapters in its layers",
                f"prompt tuning ({name})",
                "use LoRA: virtual tokens change the positions of all others",
            )
        model = model.get_base_model()
    if not callable(getattr(model, "get_output_embeddings", None)) or not hasattr(model, "config"):
        checks.fail(function, "model", "a causal LM of transformers", f"{kind} without config or head", "pass the model", error=TypeError)
    return model


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
    if hasattr(linear, "base_layer") or hasattr(linear, "modules_to_save") or not isinstance(linear, nn.Linear):
        checks.fail(
            function,
            "model",
            "one whose head is a plain linear layer",
            f"{type(linear).__name__} on the head",
            "take lm_head out of the adapter's target_modules and modules_to_save, or merge the adapter; quantised heads have no gradient",
            error=TypeError,
        )
    scale = 1.0
    if does.scale:
        scale = float(getattr(text, does.scale))
    elif does.divisor:
        scale = 1.0 / float(getattr(text, does.divisor))
    return Head(linear.weight, linear.bias, scale, getattr(text, does.softcap) if does.softcap else None, vocab_size)


def _balance(function: str, model: nn.Module, outputs: Any, attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss by the function that the model's own forward calls."""
    own = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if own is None or getattr(outputs, "router_logits", None) is None:
        got = f"{type(model).__name__}, no mixture of experts that returns router logits"
        checks.fail(function, "auxiliary", "False for this model", got, "leave it out")
    return own(outputs.router_logits, model.num_experts, model.num_experts_per_tok, attention_mask)
