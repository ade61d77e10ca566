"""What a module and its weight must be to be an output head: the module's product is F.linear of a weight that is at hand.

Adapters, quantised layers, offloaded weights and weights that a hook makes all look like a linear layer with a float weight. Reading
the weight past them would train or score another model without a word.
"""

import torch
from torch import Tensor, nn

from . import checks

# Tensors of tracers and collectives, whose product is the one of their dtype.
_TRACED = ("FakeTensor", "FunctionalTensor", "AsyncCollectiveTensor", "DTensor")


def check_linear(function: str, argument: str, module: nn.Module, expected: str) -> None:
    """Raise unless `module` multiplies by the weight that its attribute holds now."""
    found = _other_product(module)
    if found is not None:
        got, fix = found
        checks.fail(function, argument, expected, got, fix, error=TypeError)


def _other_product(module: nn.Module) -> tuple[str, str] | None:
    """(what it is, what to do) of a module whose product is not that of its weight; None for a plain one."""
    kind, own, hook = type(module).__name__, vars(module), getattr(module, "_hf_hook", None)
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        fix = "merge the adapter, or take the head out of its target_modules and modules_to_save: its update would be dropped silently"
        return f"{kind}, an adapter around one", fix
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        fix = "take the head out of the quantisation (llm_int8_skip_modules, modules_to_not_convert), or put a dequantised nn.Linear there"
        return f"{kind}, whose forward is its own, as that of a quantised layer", fix
    if any(getattr(part, "offload", False) for part in getattr(hook, "hooks", (hook,))):
        fix = "keep the head in memory: give it, and an embedding tied to it, a device in device_map"
        return f"{kind} with an offloaded weight, which is there during its own forward only", fix
    if "forward" in own and hook is None and not _casts_to_float(own["forward"]):
        fix = "take the replacement off (del module.forward), or put what it does into the weight"
        return f"{kind}, whose forward was replaced on this one object", fix
    parameters = own.get("_parameters", {})
    if "weight" not in parameters and any(name.startswith("weight_") for name in parameters):
        fix = "use torch.nn.utils.parametrizations in place of the hook; after pruning torch.nn.utils.prune.remove(module, 'weight')"
        return f"{kind}, whose weight a hook makes at each forward", fix
    return None


def _casts_to_float(forward: object) -> bool:
    """TRL's cast_lm_head_to_fp32: the same product, of operands in float32."""
    return getattr(forward, "__globals__", {}).get("__name__", "").startswith("trl.")


def check_plain_weight(function: str, argument: str, weight: Tensor) -> None:
    """Raise for tensor subclasses with a product of their own: quantised weights call themselves float32 or bfloat16."""
    kind = type(weight)
    if kind in (Tensor, nn.Parameter) or kind.__name__ in _TRACED or not _overrides(kind):
        return
    checks.fail(
        function,
        argument,
        "a plain tensor",
        f"{kind.__name__}, a tensor subclass whose products are its own",
        "dequantise the head (torchao: weight.dequantize()) or leave it out of the quantisation: quantised weights have no gradient; "
        "a subclass that only carries a name goes through weight.as_subclass(torch.Tensor)",
        error=TypeError,
    )


def check_memory(function: str, argument: str, weight: Tensor, hidden: Tensor) -> None:
    """Raise for a weight without numbers under hidden states with some."""
    if weight.is_meta and isinstance(hidden, Tensor) and not hidden.is_meta:
        checks.fail(
            function,
            argument,
            f"on {hidden.device}, where hidden is",
            f"{checks.describe(weight)}, which holds no numbers",
            "load the model, and keep an offloaded head in memory: give it, and an embedding tied to it, a device in device_map",
        )


def _overrides(kind: type) -> bool:
    function = kind.__torch_function__
    plain = getattr(function, "__func__", function) in (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)
    return not plain or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
