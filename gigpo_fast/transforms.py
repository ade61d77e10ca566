"""Which of torch's transforms a call runs under: the one file that asks torch's private state for it.

A custom op says nothing of forward mode, and torch takes that for a derivative of 0; `torch.func.grad` and `vmap` of one fail. So public
functions ask here, and take a formula in plain torch where the answer is yes. Asking costs a quarter of a microsecond.
"""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """True inside torch.func.grad, vjp, jvp, vmap and what is made of them, and inside torch.autograd.forward_ad.dual_level."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def forward_mode() -> bool:
    """True inside torch.func.jvp and torch.autograd.forward_ad.dual_level."""
    return forward_ad._current_level >= 0


def batched() -> bool:
    """True inside torch.func.vmap, where no value can be read and no shape may depend on one."""
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in torch._C._functorch.get_interpreter_stack() or ())


def legacy_batched(value: torch.Tensor) -> bool:
    """True for what torch.autograd.grad(..., is_grads_batched=True) hands to a backward: batched by other means than torch.func's."""
    return torch._C._dispatch_keys(value).has(torch._C._dispatch_key_parse("Batched"))


def nested_forward() -> bool:
    """True inside torch.func.jvp of jvp, where torch takes the derivative of an autograd.Function's jvp for 0."""
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in torch._C._functorch.get_interpreter_stack() or ()) > 1


def has_tangent(value: torch.Tensor) -> bool:
    """True where forward mode differentiates with respect to `value`."""
    return forward_mode() and value.is_floating_point() and forward_ad.unpack_dual(value).tangent is not None


# torch.compile enters the transforms for real while it traces, and guards on those around the traced function: the answer is a constant
# of the graph. This attribute is all that torch.compiler.assume_constant_result sets, which imports the whole compiler for it.
for function in (transformed, forward_mode, batched, nested_forward):
    function._dynamo_marked_constant = True
