"""The CUDA path: csrc/anchor_cuda.cu on the states' own device, from a library built ahead of time or compiled at first use.

At first use means NVRTC, which CUDA builds of torch bring with them; torch's wrapper for it is private, so this file alone touches it,
after asking whether it is there. Where neither way exists, `why_not` says so and the torch path runs on the device instead.

State of proof: compiled for sm_80, sm_90 and sm_100, and run lane by lane on a CPU (tests/anchor_cuda_on_cpu.cpp); not yet on a GPU.
"""

import functools
import pathlib

import torch
from torch import Tensor

from ..types import StateGroups
from .rows import Objects, Packed

KERNELS = ("anchor_fingerprint", "anchor_enter")
THREADS = 256  # eight warps, one state each
BLOCKS_PER_PROCESSOR = 16
FEWEST_SLOTS = 16


def why_not(device: torch.device) -> str | None:
    """None if the kernels can run on `device`, else the reason."""
    if device.type != "cuda":
        return "the CUDA kernels need a CUDA device"
    if torch.version.hip is not None:
        return "the CUDA kernels are not built for ROCm"
    return _why_not_on(_index(device))


def group(rows: Objects | Packed, labels: Tensor | None, *, bytes_decide: bool, seed: int, hash_bits: int) -> StateGroups | None:
    """Group packed rows on their device; None if states collided so often that the table gave up (the caller then sorts)."""
    assert isinstance(rows, Packed)  # objects are never on a GPU
    device, total = rows.device, rows.starts.numel()
    if total == 0:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return StateGroups(empty, empty, empty)
    capacity = max(FEWEST_SLOTS, 1 << (2 * total - 1).bit_length())
    labels = torch.zeros_like(rows.starts) if labels is None else labels.contiguous()
    settings = torch.tensor([total, seed, hash_bits, capacity, int(bytes_decide)], dtype=torch.int64).to(device)
    fingerprints = torch.empty(total, 2, dtype=torch.int64, device=device)
    table = torch.zeros(capacity, dtype=torch.int64, device=device)
    first_row = torch.full((capacity,), torch.iinfo(torch.int64).max, device=device)
    slot_of_row = torch.empty_like(rows.starts)
    gave_up = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _launcher(_index(device))(
            settings,
            rows.data,
            rows.starts.contiguous(),
            rows.lengths.contiguous(),
            labels,
            fingerprints,
            table,
            first_row,
            slot_of_row,
            gave_up,
            blocks(total, torch.cuda.get_device_properties(device).multi_processor_count),
        )
    return number_slots(first_row, slot_of_row, gave_up)


def blocks(total: int, processors: int) -> int:
    """Blocks to launch: a warp a state, up to what fills the device; warps then walk on to further states."""
    return max(1, min(-(-total // (THREADS // 32)), processors * BLOCKS_PER_PROCESSOR))


def number_slots(first_row: Tensor, slot_of_row: Tensor, gave_up: Tensor) -> StateGroups | None:
    """What the kernels found, as dense ids by first occurrence."""
    first = first_row[slot_of_row.clamp_(min=0)]
    is_first = first == torch.arange(first.numel(), device=first.device)
    ids = (is_first.cumsum(0) - 1)[first.clamp(max=first.numel() - 1)]
    if bool(gave_up):  # the first wait for the device; the sizes below need another
        return None
    rows = is_first.nonzero().squeeze(1)
    return StateGroups(ids, rows, torch.bincount(ids, minlength=rows.numel()))


def source() -> str:
    """The device code as one text: the header in place of its include line."""
    here = pathlib.Path(__file__).resolve().parent.parent
    folder = next((path for path in (here / "csrc", here.parent / "csrc") if (path / "anchor_cuda.cu").is_file()), None)
    if folder is None:
        raise FileNotFoundError("csrc/anchor_cuda.cu was not installed with the package")
    header = (folder / "anchor_hash.h").read_text().replace("#pragma once\n", "")
    return (folder / "anchor_cuda.cu").read_text().replace('#include "anchor_hash.h"\n', header)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _why_not_on(index: int) -> str | None:
    try:
        _launcher(index)
    except Exception as error:  # whatever the compiler or the driver says: grouping goes on without the kernels
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


@functools.cache
def _launcher(index: int):
    built = sorted(pathlib.Path(__file__).resolve().parent.parent.glob("_cuda*.so"))
    if built:
        torch.ops.load_library(str(built[0]))
        return torch.ops.gigpo_fast_C.enter_packed
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        raise RuntimeError("this torch has no NVRTC wrapper (torch.cuda._compile_kernel) and no _cuda library was built")
    text = source()
    with torch.cuda.device(index):
        fingerprint, enter = (compile_kernel(text, name) for name in KERNELS)

    def launch(settings, data, starts, lengths, labels, fingerprints, table, first_row, slot_of_row, gave_up, grid):
        shape = {"grid": (grid, 1, 1), "block": (THREADS, 1, 1)}
        fingerprint(**shape, args=[settings, data, starts, lengths, fingerprints])
        enter(**shape, args=[settings, data, starts, lengths, labels, fingerprints, table, first_row, slot_of_row, gave_up])

    return launch
