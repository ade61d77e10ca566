"""Row kernels behind one signature: Triton on a GPU, C++ on a CPU, torch anywhere.

A row is the logits of one token. Forward reads it once; backward turns it into the gradient of the logits.
"""

import functools
import os
from types import ModuleType

import torch

from .. import backend, checks


def rows_for(device: torch.device) -> ModuleType:
    """The module whose `rows_forward` and `rows_backward` serve tensors on `device`, as `backend` decides.

    Raises in a forked child, before its first parallel loop hangs: ask before any other work.
    """
    name = backend.choose(device)
    if device.type == "cpu":
        _check_process()
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


def _check_process() -> None:
    """torch's threads do not come along in a fork, and a parallel loop in the child would wait for them forever."""
    if os.getpid() != _process_of_first_use() and torch.get_num_threads() > 1:
        checks.fail(
            "rows_for",
            "process",
            "the one that first used torch's threads, or run on one thread",
            "a forked child: threads do not survive os.fork",
            'call torch.set_num_threads(1) in the child, or start processes by "spawn"',
            error=RuntimeError,
        )


@functools.cache
def _process_of_first_use() -> int:
    return os.getpid()
