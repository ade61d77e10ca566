"""The launch configurations of the row kernels: a fixed table by kernel, bytes of a logit and architecture, and what may replace an entry.

The table is the default. `autotune` picks among the candidates by timing, for those who ask.
Each entry and each candidate is compiled ahead of time by the tests, which allow no spill and demand 128-bit loads and stores.
"""

from typing import NamedTuple

import torch


class Config(NamedTuple):
    """How one kernel is launched: logits a tile, warps a program, pipeline stages, threads a warp."""

    block: int
    num_warps: int
    num_stages: int
    warp_size: int = 32

    def tile(self, element_size: int, *, aligned: bool = True) -> dict[str, int]:
        """BLOCK, LANES, WIDTH: the tile, the threads that share it, the consecutive elements that one thread loads at once.

        Unaligned rows are loaded element by element; every load then holds a pointer and a predicate, so the tile is half as long.
        """
        block, width = (self.block, min(16 // element_size, self.block)) if aligned else (self.block // 2, 1)
        return {"BLOCK": block, "LANES": min(self.num_warps * self.warp_size, block // width), "WIDTH": width}

    def options(self) -> dict[str, int]:
        """Launch options.

        Nothing is fused into a multiply-add: the backward's z would skip the rounding that the forward's maximum went through, and p at
        the maximum would be off by half a unit in the last place of z.
        """
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}


_NVIDIA = {
    "rows_forward": {2: Config(4096, 8, 3), 4: Config(4096, 8, 3), 8: Config(1024, 4, 3)},
    "clip_rows_forward": {2: Config(4096, 8, 3), 4: Config(4096, 8, 3), 8: Config(1024, 4, 3)},
    "rows_backward": {2: Config(4096, 8, 3), 4: Config(4096, 8, 3), 8: Config(1024, 4, 3)},
}
_AMD = {
    "rows_forward": {2: Config(4096, 8, 2, 64), 4: Config(4096, 8, 2, 64), 8: Config(2048, 8, 2, 64)},
    "clip_rows_forward": {2: Config(4096, 8, 2, 64), 4: Config(4096, 8, 2, 64), 8: Config(2048, 8, 2, 64)},
    "rows_backward": {2: Config(4096, 8, 2, 64), 4: Config(4096, 8, 2, 64), 8: Config(2048, 8, 2, 64)},
}
# For all kernels, and logits of 2 and 4 bytes: float64 is there for comparisons, not for speed.
_NVIDIA_OTHERS = (Config(2048, 4, 3), Config(2048, 8, 3), Config(8192, 16, 3), Config(1024, 4, 3))
_AMD_OTHERS = (Config(2048, 4, 2, 64), Config(8192, 16, 2, 64))
TABLE: dict[str, dict[str, dict[int, Config]]] = {"sm_80": _NVIDIA, "sm_90": _NVIDIA, "sm_100": _NVIDIA, "gfx942": _AMD}
OTHERS: dict[str, tuple[Config, ...]] = {"sm_80": _NVIDIA_OTHERS, "sm_90": _NVIDIA_OTHERS, "sm_100": _NVIDIA_OTHERS, "gfx942": _AMD_OTHERS}


def architecture(device: torch.device) -> str:
    """The table's nearest row for a device; a CPU (interpreter) gets sm_90's."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


def choose(kernel: str, logits: torch.Tensor) -> Config:
    """The configuration that `kernel` runs with on these logits."""
    return TABLE[architecture(logits.device)][kernel][logits.element_size()]


def candidates(kernel: str, logits: torch.Tensor) -> tuple[Config, ...]:
    """What `kernel` may run with on these logits, the table's entry first."""
    others = OTHERS[architecture(logits.device)] if logits.element_size() < 8 else ()
    return choose(kernel, logits), *others


def aligned(logits: torch.Tensor) -> bool:
    """True where loads are 128 bits wide: the pointer, the row length and the row stride are multiples of 16, as Triton tests them."""
    return logits.data_ptr() % 16 == 0 and logits.shape[1] % 16 == 0 and logits.stride(0) % 16 == 0


def tile(config: Config, logits: torch.Tensor) -> dict[str, int]:
    """The tile of `config` for these logits."""
    return config.tile(logits.element_size(), aligned=aligned(logits))
