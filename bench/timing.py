"""Paired timing and peak memory: each peer is timed in turns with ours, so that a busy machine slows both alike."""

import contextlib
import ctypes
import gc
import pathlib
import statistics
import time
from collections.abc import Callable


def paired(benchmark, peer: Callable[[], None], ours: Callable[[], None], *, rounds: int = 5) -> float:
    """Benchmark `peer`, running `ours` before each of its rounds; returns median(peer) / median(ours)."""
    own: list[float] = []

    def run_ours() -> None:
        started = time.perf_counter()
        ours()
        own.append(time.perf_counter() - started)

    run_ours()
    own.clear()
    benchmark.pedantic(peer, setup=run_ours, rounds=rounds, warmup_rounds=0)
    ratio = benchmark.stats.stats.median / statistics.median(own)
    benchmark.extra_info["ours_median_seconds"] = statistics.median(own)
    benchmark.extra_info["ratio_to_ours"] = ratio
    return ratio


def peak_bytes(run: Callable[[], None]) -> int | None:
    """How much resident memory `run` adds at its highest point, or None where the kernel does not say (Linux only)."""
    status, clear = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator kept would hide what `run` takes
    try:
        before = kilobytes("VmRSS")
        clear.write_text("5")  # resets the high-water mark
        run()
        return (kilobytes("VmHWM") - before) * 1024
    except OSError:
        return None
