"""The CUDA path: csrc/anchor_cuda.cu on the states' own device, from a library built ahead of time or compiled at first use.

At first use means NVRTC (nvrtc.py), which CUDA builds of torch bring with them; no CUDA toolkit is needed. Either way the kernels first
group a few states whose ids are known. Where neither way gets that right, `why_not` says why and the torch path runs on the device instead.

State of proof: compiled for sm_75 to sm_120, and run thread by thread on a CPU (tests/anchor_shim.h); not yet on a GPU.
"""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import StateGroups
from . import driver, nvrtc, sorting
from .hash_key import HashKey
from .rows import Packed

KERNELS = ("anchor_fingerprint", "anchor_fingerprint_long", "anchor_enter", "anchor_enter_long", "anchor_rehash")
THREADS = 256  # eight warps, one state each
BLOCKS_PER_PROCESSOR = 16
FEWEST_SLOTS = 16


class Kernels(NamedTuple):
    """The two steps on a device; each takes the tensors of `group_with` in the order of the operators in csrc/anchor_cuda.cu."""

    enter: Callable[..., None]
    rehash: Callable[..., None]


def why_not(device: torch.device) -> str | None:
    """None if the kernels can run on `device`, else the reason."""
    if device.type != "cuda":
        return "the CUDA kernels need a CUDA device"
    if torch.version.hip is not None:
        return "the CUDA kernels are not built for ROCm"
    return _why_not_on(_index(device))


def group(rows: Packed, labels: Tensor | None, *, bytes_decide: bool, key: HashKey) -> StateGroups:
    """Group packed rows on their device; labels (S,) int64 there, or None for one group."""
    with torch.cuda.device(rows.device):
        processors = torch.cuda.get_device_properties(rows.device).multi_processor_count
        kernels = _kernels(_index(rows.device))
        return group_with(kernels, rows, labels, bytes_decide=bytes_decide, key=key, blocks=blocks(rows.starts.numel(), processors))


def group_with(kernels: Kernels, rows: Packed, labels: Tensor | None, *, bytes_decide: bool, key: HashKey, blocks: int) -> StateGroups:
    """The whole path but the choice of kernels: waits for the device once, or again if states had to be set aside."""
    device, total = rows.device, rows.starts.numel()
    empty = torch.empty(0, dtype=torch.int64, device=device)
    if total == 0:
        return StateGroups(empty, empty, empty)
    capacity = max(FEWEST_SLOTS, 1 << (2 * total - 1).bit_length())
    told = [total, *key, capacity, int(bytes_decide), rows.data.numel()]
    # From pinned memory, or the copy would wait for all that the device has still to do.
    settings = torch.tensor(told, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda").to(device, non_blocking=True)
    starts, lengths = rows.starts.contiguous(), rows.lengths.contiguous()
    fingerprints, table = empty.new_empty(total, 2), empty.new_zeros(capacity)
    first_row = empty.new_full((capacity,), torch.iinfo(torch.int64).max)
    slot_of_row, long_rows = torch.empty_like(starts), torch.empty_like(starts)
    counters = torch.zeros(2, dtype=torch.int32, device=device)
    names = empty if labels is None else labels.contiguous()
    kernels.enter(settings, rows.data, starts, lengths, names, fingerprints, table, first_row, slot_of_row, long_rows, counters, blocks)
    first = first_row[slot_of_row.clamp(min=0)]
    found = (first == torch.arange(total, device=device)).sum()
    set_aside, found = torch.stack([counters[1].to(torch.int64), found]).tolist()  # the one wait for the device
    if set_aside == 0:
        return sorting.number_first_rows(first, found)
    kernels.rehash(settings, rows.data, starts, lengths, slot_of_row, fingerprints, blocks)
    aside = (slot_of_row < 0).nonzero().squeeze(1)
    theirs = Packed(rows.data, starts[aside], lengths[aside])
    merged = sorting.group_by_sorting(theirs, None if labels is None else labels[aside], hashes=fingerprints[aside].unbind(1))
    first[aside] = aside[merged.first_row[merged.ids]]
    return sorting.number_first_rows(first)


def blocks(total: int, processors: int) -> int:
    """Blocks to launch: a warp a state, up to what fills the device; warps then walk on to further states."""
    return max(1, min(-(-total // (THREADS // 32)), processors * BLOCKS_PER_PROCESSOR))


def source() -> str:
    """The device code as one text: each header in place of its include line."""
    here = pathlib.Path(__file__).resolve().parent.parent
    folder = next((path for path in (here / "csrc", here.parent / "csrc") if (path / "anchor_cuda.cu").is_file()), None)
    if folder is None:
        raise FileNotFoundError("csrc/anchor_cuda.cu was not installed with the package")
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return re.sub(r'#include "(.*)"\n|#pragma once\n', lambda line: text(line[1]) if line[1] else "", (folder / name).read_text())

    return text("anchor_cuda.cu")


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _why_not_on(index: int) -> str | None:
    try:
        _kernels(index)
    except Exception as error:  # whatever the compiler or the driver says: grouping goes on without the kernels
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@functools.cache
def _kernels(index: int) -> Kernels:
    """Kernels that were seen to work on a device: a library that was built may not know its architecture."""
    reasons = []
    for name, way in (("the library built ahead of time", built), ("the source compiled by NVRTC", compiled)):
        try:
            with torch.cuda.device(index):
                kernels = way(index)
                if kernels is not None:
                    try_out(kernels, torch.device("cuda", index))
                    return kernels
        except Exception as error:  # as in _why_not_on
            reasons.append(f"{name}: {_line(error)}")
    raise RuntimeError("; ".join(reasons))


def built(index: int) -> Kernels | None:
    """From the library that was built ahead of time, None if none was."""
    found = sorted(pathlib.Path(__file__).resolve().parent.parent.glob("_cuda*.so"))
    if not found:
        return None
    torch.ops.load_library(str(found[0]))
    return Kernels(torch.ops.gigpo_fast_C.enter_packed, torch.ops.gigpo_fast_C.rehash_packed)


def compiled(index: int) -> Kernels:
    """Compiled here, all at once, for the device's architecture."""
    major, minor = torch.cuda.get_device_capability(index)
    module = driver.Module(nvrtc.cubin(source(), f"sm_{major}{minor}"), index)
    return from_functions(*map(module.kernel, KERNELS))


def try_out(kernels: Kernels, device: torch.device) -> None:
    """Group states of every kind, each twice and at two alignments, with good hashes and bad ones; raises if an id is wrong."""
    period, states = 251, [(0, length) for length in (0, 3, 7, 16, 100, 300, 9000)] + [(start, 40) for start in range(6)]
    twice = states + [(start + period, length) for start, length in states]
    starts, lengths = torch.tensor(twice, dtype=torch.int64, device=device).unbind(1)
    data = (torch.arange(period + 9000, device=device) % period).to(torch.uint8)
    for bits in (128, 1):  # with one bit, states of one length are set aside
        key = HashKey(seed=1, sip_low=2, sip_high=3, bits=bits)
        found = group_with(kernels, Packed(data, starts, lengths), None, bytes_decide=True, key=key, blocks=2)
        if found.ids.tolist() != 2 * list(range(len(states))):
            raise RuntimeError("the kernels' answer for states whose ids are known is wrong")


def from_functions(fingerprint, fingerprint_long, enter, enter_long, rehash) -> Kernels:
    """The two steps from kernels that are called with grid, block and args, as those of a driver.Module are."""

    def run_enter(settings, data, starts, lengths, labels, fingerprints, table, first_row, slots, long_rows, counters, grid):
        shape = {"grid": (grid, 1, 1), "block": (THREADS, 1, 1)}
        states = [settings, data, starts, lengths]
        places = [*states, labels, fingerprints, table, first_row, slots, counters]
        fingerprint(**shape, args=[*states, fingerprints, long_rows, counters])
        fingerprint_long(**shape, args=[*states, fingerprints, long_rows, counters])
        enter(**shape, args=places)
        enter_long(**shape, args=[*places, long_rows])

    def run_rehash(settings, data, starts, lengths, slots, fingerprints, grid):
        rehash(grid=(grid, 1, 1), block=(THREADS, 1, 1), args=[settings, data, starts, lengths, slots, fingerprints])

    return Kernels(run_enter, run_rehash)
