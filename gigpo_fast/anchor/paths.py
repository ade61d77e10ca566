"""Which path groups states, and why not a faster one.

Every path gives the same ids: dense, numbered by first occurrence, decided by bytes. So ids do not depend on device, thread count
or hash seed, and a path is chosen for speed alone.
"""

import functools
import os

import torch
from torch import Tensor

from .. import backend, checks
from ..types import StateGroups
from . import sorting
from .rows import Objects, Packed


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


def group_rows(rows: Objects | Packed, labels: Tensor | None, *, bytes_decide: bool = True, hash_bits: int = 128) -> StateGroups:
    """Group rows on the path of their device; labels (S,) int64 on that device, or None for one group."""
    name, _ = path(rows.device)
    if name == "native":
        from . import native

        return native.group(rows, labels, bytes_decide=bytes_decide, seed=_seed(), hash_bits=hash_bits)
    if name == "cuda":
        from . import cuda

        found = cuda.group(rows, labels, bytes_decide=bytes_decide, seed=_seed(), hash_bits=hash_bits)
        if found is not None:
            return found
    return sorting.group(rows, labels, seed=_seed(), hash_bits=hash_bits)


@functools.cache
def _seed() -> int:
    # Drawn per process, so that nobody can prepare colliding states; ids never depend on it. The variable repeats a timing problem.
    given = os.environ.get("GIGPO_FAST_HASH_SEED")
    if given is None:
        return int.from_bytes(os.urandom(8), "little", signed=True)
    try:
        return (int(given, 0) + 2**63) % 2**64 - 2**63
    except ValueError:
        checks.fail("group_states", "GIGPO_FAST_HASH_SEED", "an integer", given, "unset it or correct it")
