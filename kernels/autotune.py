"""Launch configurations chosen by timing, for those who ask for it; the fixed table of `configs` is the default.

Trials run on memory of their own: the caller's tensors are neither read nor written, and the gradient never overwrites the logits it is
made of. A choice holds for the process and does not depend on the number of rows, so new lengths time nothing and recompile nothing.
Each configuration adds a row up in an order of its own, so processes that chose differently may differ in the last bits.
"""

import functools
import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from . import configs
from .arguments import accumulator, on_device
from .clip_loss import clip_rows_forward
from .rows_backward import rows_backward
from .rows_forward import rows_forward

SCRATCH_BYTES = 256 << 20  # logits of a trial: more than any cache holds, and enough rows to fill the device
Launch = Callable[[configs.Config], object]

_chosen: dict[tuple, configs.Config] = {}
_one_at_a_time = threading.Lock()  # two trials at once would time each other
_log = logging.getLogger(__name__)


def best(
    kernel: str,  # a key of configs.TABLE's rows
    logits: Tensor,  # (n, V): its device, dtype, V and alignment matter, its values do not
    tanh_in: float = 0.0,
    *,
    out_dtype: torch.dtype | None = None,  # of the gradient of rows_backward; None: that of logits
    measure: Callable[[Callable[[], object]], float] | None = None,  # milliseconds of a launch; None: by the device's events
) -> configs.Config:
    """The candidate that ran fastest: timed at the first call for this kernel, device, element sizes, alignment and softcap, then kept.

    The first call waits for the device and holds two trials' worth of scratch memory (2 x 256 MiB). Where nothing can be timed (off a GPU
    without `measure`, while a CUDA graph is being captured) the fixed table answers, and nothing is kept.
    """
    out_dtype = out_dtype or logits.dtype
    key = kernel, logits.device, logits.dtype.itemsize, out_dtype.itemsize, configs.aligned(logits), tanh_in != 0.0
    with _one_at_a_time:
        if key not in _chosen:
            if measure is None and (logits.device.type != "cuda" or torch.cuda.is_current_stream_capturing()):
                return configs.choose(kernel, logits)
            _chosen[key] = _fastest(kernel, logits, tanh_in, out_dtype, measure or _milliseconds)
        return _chosen[key]


def _fastest(kernel: str, logits: Tensor, tanh_in: float, out_dtype: torch.dtype, measure: Callable) -> configs.Config:
    candidates = configs.candidates(kernel, logits)
    if len(candidates) == 1:
        return candidates[0]
    with on_device(logits):
        launch = scratch_launch(kernel, logits, tanh_in, out_dtype)
        times = {config: _time_or_infinity(functools.partial(launch, config), measure) for config in candidates}
    choice = min(times, key=times.__getitem__)  # the first of equals: the table's
    listed = ", ".join(f"{config.block}/{config.num_warps}: {ms:.4f} ms" for config, ms in times.items())
    _log.info(
        "%s, %s of %d columns on %s: block/warps %d/%d (%s)", kernel, logits.dtype, logits.shape[1], logits.device, *choice[:2], listed
    )
    return choice


def scratch_launch(kernel: str, logits: Tensor, tanh_in: float, out_dtype: torch.dtype) -> Launch:
    """A function that launches `kernel` with a given configuration on zeros shaped, typed and aligned as the rows of `logits`."""
    vocabulary, dtype = logits.shape[1], accumulator(logits)
    rows = max(1, SCRATCH_BYTES // (vocabulary * logits.element_size()))
    off = 0 if configs.aligned(logits) else 1  # a column that no pointer of an aligned row could start at

    def matrix(of: torch.dtype) -> Tensor:
        return logits.new_zeros((rows, vocabulary + off), dtype=of)[:, off:]

    scratch, ids, ones = matrix(logits.dtype), logits.new_zeros(rows, dtype=torch.int64), logits.new_ones(rows, dtype=dtype)
    if kernel == "rows_forward":
        return lambda config: rows_forward(scratch, ids, ones, tanh_in, config=config)
    if kernel == "rows_backward":
        out, lse = matrix(out_dtype), ones.new_ones((rows, 2))
        return lambda config: rows_backward(scratch, ids, ones, tanh_in, lse, ones, ones, ones, out, config=config)
    clip = {"low": 0.2, "high": 0.2, "kl_coefficient": 0.1}
    return lambda config: clip_rows_forward(scratch, ids, ones, tanh_in, ones, ones, ones, ones, **clip, config=config)


def _time_or_infinity(launch: Callable[[], object], measure: Callable) -> float:
    try:
        return float(measure(launch))
    except OutOfResources:  # a smaller relative of an architecture in the table
        return float("inf")


def _milliseconds(launch: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(launch, warmup=10, rep=50, return_mode="median")
