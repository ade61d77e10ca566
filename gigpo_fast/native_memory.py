"""Memory that runs out inside of native code is one kind of error, whoever asked for it: MemoryError, with what to do.

Python's own error for the memory of the host. torch.OutOfMemoryError speaks of an accelerator's, and trainers answer it by emptying caches.
"""

from collections.abc import Callable
from typing import Any

import torch

_SIGNS = (
    "bad_alloc",
    "can't allocate memory",
    '"aten::empty"',
    '"aten::new_empty"',
)  # C++'s, torch's, torch's behind the stable ABI


def call(function: str, native: Callable[..., Any], *arguments: Any) -> Any:
    """native(*arguments); raises MemoryError where memory ran out, and everything else as it came."""
    if torch.compiler.is_compiling():
        return native(*arguments)
    try:
        return native(*arguments)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise MemoryError(f"{function}: memory ran out in native code; pass fewer rows at once, or raise the process's limit") from error
