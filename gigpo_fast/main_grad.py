"""`weight_grad_out`: d_weight added to a caller's fp32 buffer (Megatron's main_grad), and who must not ask for that.

Whoever reduces gradients between ranks looks for them in `weight.grad`; whoever ties the head to the embedding has a second
gradient that goes there. Both would train on half of the gradient without a word, so they are refused.
"""

import gc

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import checks
from .head import Head

_found: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> the name of its wrapper, or None: asked once for each weight


def check_weight_grad_out(function: str, out: Tensor, head: Tensor | Head) -> None:
    """Refuse a buffer that does not fit the weight, and weights whose gradient others wait for."""
    weight = head.weight if isinstance(head, Head) else head
    if torch.compiler.is_compiling():
        checks.fail(function, "weight_grad_out", "None under torch.compile", out, "call the loss outside of the compiled region")
    checks.tensor(
        function,
        "weight_grad_out",
        out,
        shape=tuple(weight.shape),
        dtypes=(checks.compute_dtype(weight.dtype),),
        device=weight.device,
        fix="allocate it as torch.zeros_like(weight, dtype=torch.float32), padding columns included",
    )
    if out.requires_grad:
        checks.fail(function, "weight_grad_out", "a buffer without gradient", out, "pass main_grad.detach()")
    if not (weight.is_leaf and weight.requires_grad):
        got = "one that is frozen" if weight.is_leaf else "one computed from others"
        checks.fail(function, "head.weight", "a parameter that requires a gradient for weight_grad_out", got, "leave weight_grad_out None")
    if weight not in _found:
        _found[weight] = _wrapper_of(weight)
    if _found[weight] is not None:
        checks.fail(
            function,
            "head.weight",
            "a parameter that no wrapper reduces",
            f"one inside {_found[weight]}, which waits for weight.grad",
            "leave weight_grad_out None: the wrapper accumulates in its own buffers",
        )


def refuse_other_gradients(function: str, loss: Tensor, head: Tensor | Head) -> None:
    """Raise in the backward of `loss` if anything but this loss sends a gradient to the weight (a tied embedding, a second use)."""
    weight = head.weight if isinstance(head, Head) else head

    handles: list = []

    def stop_watching() -> None:
        while handles:
            handles.pop().remove()

    def refuse(gradient: Tensor | None) -> None:
        if gradient is not None:
            stop_watching()
            raise RuntimeError(
                f"{function}: head.weight must have no other use in the graph when weight_grad_out is given, got a second gradient "
                "(a tied embedding?); leave weight_grad_out None, so that both are added to weight.grad"
            )

    def watch(_: Tensor) -> None:
        handles.append(weight.register_hook(refuse))
        torch.autograd.Variable._execution_engine.queue_callback(stop_watching)

    if loss.requires_grad:
        loss.register_hook(watch)


def _wrapper_of(weight: Tensor) -> str | None:
    """The class of the data-parallel wrapper that holds `weight`, found among all living modules; None outside torch.distributed."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (nn.parallel.DistributedDataParallel, FSDPModule, FullyShardedDataParallel)
    for thing in gc.get_objects():
        kind = next((kind for kind in kinds if issubclass(type(thing), kind)), None)  # by type: isinstance may call into lazy proxies
        if kind is not None and any(parameter is weight for parameter in thing.parameters()):
            return kind.__name__
    return None
