"""Arguments that are constants by contract: no gradient flows into them, and the first call where one is expected says so."""

import warnings

import torch
from torch import Tensor

from .transforms import has_tangent

_warned: set[tuple[str, str]] = set()  # (function, argument); clear it to be warned again


def constant(function: str, name: str, value: Tensor) -> Tensor:
    """`value` without its graph; a UserWarning, once a function and argument, where a gradient was to flow into it.

    Not while torch.compile traces: what it traces it would have to break for.
    """
    if not torch.compiler.is_compiling() and (function, name) not in _warned:
        if (value.requires_grad and torch.is_grad_enabled()) or has_tangent(value):
            _warned.add((function, name))
            hint = " (log-probs of the old policy are those before the update)" if name == "old_log_probs" else ""
            warnings.warn(
                f"{function}: {name} is a constant here, got a tensor that is differentiated: its gradient is 0; "
                f"pass {name}.detach() if that is meant{hint}",
                UserWarning,
                stacklevel=4,
            )
    return value.detach()
