"""Row kernels behind one signature: Triton on a GPU, C++ on a CPU, torch anywhere.

A row is the logits of one token. Forward reads it once; backward turns it into the gradient of the logits.
"""

from types import ModuleType

import torch

from .. import backend, checks


def rows_for(device: torch.device) -> ModuleType:
    """The module whose `rows_forward` and `rows_backward` serve tensors on `device`, as `backend` decides.

    Raises in a forked child, before its first parallel loop hangs: ask before any other work.
    """
    name = backend.choose(device)
    if device.type == "cpu":
        checks.process("rows_for")
    if name == "native":
        from . import rows_native

        return rows_native
    if name == "triton":
        from . import rows_triton

        return rows_triton
    from . import rows_torch

    return rows_torch


def scores_on_gpu_kernels(device: torch.device) -> bool:
    """True where Triton serves the rows: no gradient rows are dropped there, since that would wait for the device."""
    return backend.choose(device) == "triton"
