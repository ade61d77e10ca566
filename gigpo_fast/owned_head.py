"""What LinearPolicyLoss checks because it owns a head inside wrappers: FSDP2, tensor parallelism, mixed-precision policies.

A wrapper acts around a module's forward and says nothing when it goes wrong: a head that was tied to the embedding becomes two
parameters, a policy that casts a forward's inputs rounds log-probs and denominators. Both would train another model without a word.
"""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .distributed import head_of_dtensor
from .head import Head
from .linear_head import check_linear

# owner -> (module, name) of the parameters that were the head's weight when the owner was made. Outside of the owner: copies have none.
_ties: "weakref.WeakKeyDictionary[nn.Module, list[tuple[weakref.ref, str]]]" = weakref.WeakKeyDictionary()


def remember_ties(owner: nn.Module, lm_head: nn.Module) -> None:
    """Note which living modules share the head's weight, before a wrapper can replace it in some of them."""
    weight, found = getattr(lm_head, "weight", None), []
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module) and thing is not lm_head:  # by type: isinstance may call into lazy proxies
            parameters = thing.__dict__.get("_parameters", {})
            found += [(weakref.ref(thing), name) for name, parameter in parameters.items() if weight is not None and parameter is weight]
    _ties[owner] = found


def owned_head(owner: nn.Module, lm_head: nn.Module, group_name: str | None, **features: float | int | None) -> Head:
    """The head as it is while the owner's forward runs; raises where its gradient would not reach the parameter that is trained."""
    function = "LinearPolicyLoss"
    check_linear(function, "lm_head", lm_head, "a plain linear head")
    weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and not torch.compiler.is_compiling():
        for reference, name in _ties.get(owner, []):
            other = reference()
            if other is not None and getattr(other, name, None) is not weight:
                checks.fail(
                    function,
                    "lm_head.weight",
                    f"still the {name} of the {type(other).__name__} that it was tied to",
                    "a parameter of its own, so that each would be trained with half of the gradient",
                    "shard both in one group: fully_shard([embedding, loss]), or fully_shard the module that holds both and neither alone",
                )
    if type(weight).__name__ == "DTensor":
        mesh = weight.device_mesh
        if group_name is None or mesh.ndim != 1 or mesh.get_group().group_name != group_name:
            checks.fail(
                function,
                "lm_head.weight",
                "whole while the forward runs, or sharded over the ranks that group_name names",
                f"a DTensor, {weight.placements} on a mesh of {tuple(mesh.shape)}",
                "fully_shard this module, not lm_head alone: FSDP2 unshards around the forward of what it wraps; "
                "for tensor parallelism pass group_name=mesh.get_group().group_name",
                error=TypeError,
            )
        return head_of_dtensor(weight, bias, **features)
    return Head(weight, bias, **features, group_name=group_name)


def refuse_rounded(arguments: dict[str, Any]) -> None:
    """Raise for numbers of tokens in low precision, which is what a policy that casts a forward's inputs makes of them."""
    for name, value in arguments.items():
        if isinstance(value, dict):
            refuse_rounded({f"{name}[{key!r}]": entry for key, entry in value.items()})
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            refuse_rounded({f"{name}.{field}": entry for field, entry in zip(value._fields, value)})
        elif isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            checks.fail(
                "LinearPolicyLoss",
                name,
                "float32 or float64",
                value,
                "a mixed-precision policy that casts inputs rounds log-probs and counts: MixedPrecisionPolicy(cast_forward_inputs=False), "
                "here and on every module around; numbers that were low precision before go through .float()",
                error=TypeError,
            )
