"""Derivatives that a custom op does not have, refused by name: torch itself would take them for 0, or die in words of its own.

Public functions ask `transforms` and go around the ops, so what is caught here reached an op by another way: a graph that was exported,
or a backward that is differentiated again.
"""

from typing import Any, NoReturn

import torch

from ..transforms import forward_mode

_library = torch.library.Library("gigpo_fast", "FRAGMENT")


def no_double_backward(op: Any, function: str) -> None:
    """Give a backward op an autograd formula that raises. Without one, a second backward would silently be 0 or wrong."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            f"{function}: gradients of gradients are not available, got a backward through its backward; "
            "do not use create_graph=True through this loss, take them with torch.func (jvp of grad), or compute log-probs with plain torch"
        )

    op.register_autograd(refuse)
    no_transforms(op, function)


def no_transforms(op: Any, function: str) -> None:
    """Refuse an op where torch.func would transform it: this key is asked before any other, and only inside of a transform."""

    def refuse(*arguments: Any, **keywords: Any) -> NoReturn:
        raise _refusal(function)

    _library.impl(op._name, refuse, "FuncTorchDynamicLayerFrontMode")


def no_forward_mode(function: str) -> None:
    """Refuse to run as an op inside forward mode, which has no key of its own; called by the op and by its fake."""
    if forward_mode():
        raise _refusal(function)


def _refusal(function: str) -> RuntimeError:
    return RuntimeError(
        f"{function}: its custom op must run outside of torch.func and forward mode, got a transform around it, "
        "as of an exported program or of a graph made outside; transform the function itself"
    )
