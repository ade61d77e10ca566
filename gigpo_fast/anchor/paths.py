"""Which path groups states, and why not a faster one.

Every path gives the same ids: dense, numbered by first occurrence, decided by bytes. So ids do not depend on device, thread count
or hash seed, and a path is chosen for speed alone.
"""

import torch
from torch import Tensor

from .. import backend
from ..types import StateGroups
from . import sorting
from .hash_key import hash_key
from .rows import FixedWidth, Objects, Packed, encoded


def path(device: torch.device | str = "cpu") -> tuple[str, str | None]:
    """Which path groups states on `device` ("native", "cuda" or "torch"), and why not a faster one (None if it is the fastest)."""
    device = torch.device(device)
    chosen = backend.choose(device)
    if device.type == "cuda" and backend.requested() != "torch":
        from . import cuda

        reason = cuda.why_not(device)
        return ("cuda", None) if reason is None else ("torch", reason)
    if chosen == "native":
        return "native", None
    return "torch", backend.why_not_native(device) if backend.requested() == "auto" else f"backend {backend.requested()!r} was asked for"


def group_rows(
    rows: Objects | Packed | FixedWidth, labels: Tensor | None, *, bytes_decide: bool = True, hash_bits: int = 128
) -> StateGroups:
    """Group rows on the path of their device; labels (S,) int64 on that device, or None for one group."""
    if isinstance(rows, Objects):
        found = group_text(rows.items, labels, bytes_decide=bytes_decide, hash_bits=hash_bits)
        if found is not None:
            return found
        rows = encoded(rows)
    name, _ = path(rows.device)
    key = hash_key()._replace(bits=hash_bits)
    if name == "native":
        from . import native

        group = native.group_list if isinstance(rows, Objects) else native.group
        return group(rows.items if isinstance(rows, Objects) else rows, labels, bytes_decide=bytes_decide, key=key)
    rows = rows.packed() if isinstance(rows, FixedWidth) else rows
    if name == "cuda":
        from . import cuda

        return cuda.group(rows, labels, bytes_decide=bytes_decide, key=key)
    return sorting.group(rows, labels, key=key)


def group_text(items: list, labels: Tensor | None, *, bytes_decide: bool = True, hash_bits: int = 128) -> StateGroups | None:
    """Group a list of str and bytes; None if it holds anything else, or if no path here reads objects in place."""
    if path("cpu")[0] != "native":
        return None
    from . import native

    return native.group_list(items, labels, bytes_decide=bytes_decide, key=hash_key()._replace(bits=hash_bits))
