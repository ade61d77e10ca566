"""Paired timing and peak memory: each peer is timed in turns with ours, so that a busy machine slows both alike."""

import contextlib
import ctypes
import gc
import pathlib
import statistics
import time
from collections.abc import Callable

import torch


def paired(benchmark, peer: Callable[[], None], ours: Callable[[], None], *, rounds: int = 5, warm: bool = False) -> float:
    """Benchmark `peer`, running `ours` before each of its rounds (and once more before, unless it is warm); median(peer) / median(ours)."""
    own: list[float] = []

    def run_ours() -> None:
        started = time.perf_counter()
        ours()
        own.append(time.perf_counter() - started)

    if not warm:
        run_ours()
        own.clear()
    benchmark.pedantic(peer, setup=run_ours, rounds=rounds, warmup_rounds=0)
    ratio = benchmark.stats.stats.median / statistics.median(own)
    benchmark.extra_info["ours_median_seconds"] = statistics.median(own)
    benchmark.extra_info["ratio_to_ours"] = ratio
    return ratio


def finished(run: Callable, device: torch.device) -> Callable[[], None]:
    """`run` without its result, returning when the device has done the work."""

    def wait() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wait


def seconds_of(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], None], device: torch.device | None = None) -> int | None:
    """How much memory `run` adds at its highest point, what it leaves behind included. None where nobody says (a CPU without Linux)."""
    if device is not None and device.type == "cuda":
        return _peak_on_gpu(run, device)
    status, clear = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator kept would hide what `run` takes
    try:
        before = kilobytes("VmRSS")
        clear.write_text("5")  # resets the high-water mark
    except OSError:
        run()
        return None
    run()
    return (kilobytes("VmHWM") - before) * 1024


def _peak_on_gpu(run: Callable[[], None], device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
