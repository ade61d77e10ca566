"""What lies around a causal LM of transformers: PEFT, torch.compile, accelerate, a trainer's own forward.

A wrapper acts when it is called. So calls go in through the outermost one, and only the innermost step, the class's own forward, gives
way to one that stops at the hidden states. What cannot be called that way is refused by name.
"""

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .. import checks

_TUNERS = ("BaseTuner", "PolyModel")  # classes of PEFT whose forward does nothing to what the model returns
_LOGITS = {"labels", "shift_labels", "logits_to_keep", "return_dict", "num_items_in_batch"}
_names: dict[type, frozenset[str]] = {}  # of each class of layers; a plain dictionary, which torch.compile reads without a warning


def causal_lm(function: str, model: nn.Module) -> nn.Module:
    """The transformers model itself, out of its wrappers; everything that is no causal LM, or not reached by a call, is refused."""
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
    if hasattr(type(model), "get_output_embeddings") and hasattr(model, "config"):
        return model
    if "_orig_mod" in model._modules:  # torch.compile's
        return causal_lm(function, model._orig_mod)
    if isinstance(getattr(model, "module", None), nn.Module):
        checks.fail(
            function,
            "model",
            "a causal LM",
            f"{kind} around one",
            "add_head_call(model) before wrapping, then call the wrapper with head_call: it reduces gradients in its own forward only",
            error=TypeError,
        )
    if _is_peft(model):
        return causal_lm(function, _inside_peft(function, model))
    checks.fail(function, "model", "a causal LM of transformers", f"{kind} without config or head", "pass the model", error=TypeError)


def is_wrapped(causal: nn.Module) -> bool:
    """Whether a call of this object does more than its class's forward: by hooks, in compiled graphs, or in a forward of its own."""
    return "forward" in vars(causal) or bool(causal._forward_pre_hooks) or causal._compiled_call_impl is not None


def _is_peft(model: nn.Module) -> bool:
    return hasattr(model, "peft_config") and isinstance(getattr(model, "base_model", None), nn.Module)


def _inside_peft(function: str, model: nn.Module) -> nn.Module:
    """The model that PEFT's forward calls, if that forward changes nothing but the layers."""
    expected = "a causal LM, or one with adapters in its layers"
    active = getattr(model, "active_peft_config", None)
    if getattr(active, "is_prompt_learning", False):
        got = f"prompt tuning ({type(active).__name__})"
        checks.fail(function, "model", expected, got, "use LoRA: virtual tokens change the positions of all others")
    tuner = type(model.base_model)
    owner = next(kind for kind in tuner.__mro__ if "forward" in vars(kind))
    if owner.__name__ not in _TUNERS:
        got = f"{tuner.__name__} of PEFT, whose forward does more than run the model"
        checks.fail(function, "model", expected, got, "use LoRA: what that forward adds to the model's loss would be lost here")
    return model.base_model.model


def layers_of(causal: nn.Module) -> nn.Module:
    """What runs below the head. Where a class names it wrongly (Gemma 3 in transformers 4.57), base_model is the model itself."""
    return causal.model if causal.base_model is causal else causal.base_model


def check_inputs(function: str, causal: nn.Module, names: Iterable[str], *, taken: Iterable[str] = ()) -> None:
    """Raise for keywords that concern logits, and for those that neither the layers nor a wrapper (`taken`) read."""
    unread = sorted(_LOGITS.intersection(names))
    if unread:
        checks.fail(function, "inputs", "what the model's layers read", f"also {unread}", "leave them out: no logits are formed here")
    layers = type(getattr(layers_of(causal), "_orig_mod", layers_of(causal)))
    unknown = sorted(set(names) - _names_read(layers) - set(taken))
    if unknown:
        fix = "leave them out: layers that do not name a keyword drop it without a word"
        checks.fail(function, "inputs", f"keywords of {layers.__name__}.forward", f"also {unknown}", fix)


def _names_read(layers: type) -> frozenset[str]:
    """The keywords that this class's forward names, or that transformers says every model's layers may read."""
    if layers not in _names:
        parameters = inspect.signature(layers.forward).parameters
        names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
        if len(names) < len(parameters):
            from transformers.utils import TransformersKwargs

            names |= set(TransformersKwargs.__annotations__)
        if "cache" in names:  # the name since transformers 5.24, which still reads the one before
            names.add("past_key_values")
        _names[layers] = frozenset(names - {"self"})
    return _names[layers]


def taken_by_peft(model: nn.Module) -> set[str]:
    """The keywords that PEFT's forward keeps for itself."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(type(model), "get_output_embeddings") or not _is_peft(model):
        return set()
    taken = {"task_ids"} if type(model.base_model).__name__ == "PolyModel" else set()
    if hasattr(type(model.base_model), "_enable_peft_forward_hooks"):
        taken |= getattr(model, "special_peft_forward_args", set())
    return taken


def put_inside(function: str, causal: nn.Module, old: Callable, new: Callable) -> None:
    """Let a forward that was replaced on this one object end in `new` where it ended in `old`, its class's own.

    Known are accelerate's autocast and hooks, and TRL's forward with a fused head, which goes on beside `new`.
    """
    own = vars(causal)
    place = "_old_forward" if "_old_forward" in own else "forward"  # accelerate's hooks call the first
    if place not in own:
        return
    made = _ending_in(own[place], old, new, causal)
    if made is None:
        wrapped = own[place]
        name = getattr(wrapped, "__module__", None), getattr(wrapped, "__qualname__", type(wrapped).__name__)
        checks.fail(
            function,
            "model.forward",
            "its class's own, or that in accelerate's autocast",
            f"{'.'.join(filter(None, name))}, put in its place on this one object",
            "add_head_call(model) before that is done, or undo it: del model.forward",
            error=TypeError,
        )
    setattr(causal, place, made)


def _ending_in(wrapped: Callable, old: Callable, new: Callable, owner: nn.Module) -> Callable | None:
    """The forward `wrapped` of `owner` around `new`; None if it is not known how it was made."""
    if wrapped is old:
        return new
    if isinstance(wrapped, types.MethodType):
        made = _ending_in(wrapped.__func__, old, new, owner)
        return made and types.MethodType(made, wrapped.__self__)
    module, inner = getattr(wrapped, "__globals__", {}).get("__name__"), getattr(wrapped, "__wrapped__", None)
    if module == "trl.trainer.utils" and inner is old:
        return _beside(wrapped, new, owner)
    if module == "torch.amp.autocast_mode":
        made = _ending_in(inner, old, new, owner)
        return made and _context_of(wrapped)(made)
    if module == "accelerate.utils.operations":
        from accelerate.utils.operations import convert_outputs_to_fp32

        made = _ending_in(getattr(inner, "model_forward", None), old, new, owner)
        return made and convert_outputs_to_fp32(made)
    return None


def _context_of(decorated: Callable) -> torch.autocast:
    """The autocast that torch put around a function."""
    return next(value for value in inspect.getclosurevars(decorated).nonlocals.values() if isinstance(value, torch.autocast))


def _beside(other: Callable, new: Callable, owner: nn.Module) -> Callable:
    """TRL's forward, or `new` in a call with `head_call` and on a copy: TRL's runs the weights of the one model that it was made for."""
    made_for = weakref.ref(owner)

    @functools.wraps(other)
    def forward(self: nn.Module, *args: Any, head_call: Callable | None = None, **inputs: Any) -> Any:
        if head_call is None and self is made_for():
            return other(self, *args, **inputs)
        if inputs.pop("fused_lm_head", False):
            fix = "call trl.trainer.utils.add_fused_lm_head on the copy, or head_call alone"
            checks.fail("model.forward", "fused_lm_head", "False with head_call and on a copy of the model TRL gave it to", True, fix)
        return new(self, *args, head_call=head_call, **inputs)

    return forward
