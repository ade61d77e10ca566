"""Instructions an element of a compiled Triton kernel, counted in its machine code.

A kernel is compiled from its own launch, for any architecture; no GPU is needed.
"""

import contextlib
import functools
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from gigpo_fast.kernels import configs

CUBIN = "cubin"


class Missing(Exception):
    """Which tool is not there, and how to get it."""


class Launch(NamedTuple):
    """One launch as its launcher made it, and what it compiles to."""

    kernel: str
    rows: int  # programs, one a row
    given: dict  # its arguments by name
    instructions: float  # an element, in the loop over a row; every one of a thread counts, whatever its pipe; 0 without a loop


def tools() -> pathlib.Path:
    """The folder of Triton's nvdisasm; raises Missing where kernels cannot be compiled or read here."""
    try:
        import triton
    except ImportError:
        raise Missing("triton is not installed, so nothing can be compiled: pip install triton") from None
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Missing("TRITON_INTERPRET=1 replaces the compiler: unset it")
    folder = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (folder / "nvdisasm").exists():
        raise Missing(f"{folder.name}/nvdisasm is not in this build of triton, so machine code cannot be read: use triton's Linux wheel")
    return folder


@contextlib.contextmanager
def recorded(architecture: str) -> Iterator[list[Launch]]:
    """Launches of Triton kernels inside compile for `architecture` ("sm_90") and are kept in the list; nothing runs."""
    tools()
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoDevice:
        launcher_cls = None
        get_current_device = staticmethod(lambda: int(architecture[3:]))  # Triton keeps what it compiled by this number
        get_current_stream = staticmethod(lambda device=None: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", int(architecture[3:]), 32))
        get_active_torch_device = staticmethod(lambda: torch.device("cpu"))
        map_python_to_cpp_type = staticmethod(lambda kind: kind)

    launches: list[Launch] = []
    run, before, choose = JITFunction.run, driver._active, configs.architecture

    def keep(self, *args, grid, warmup, **keywords):
        compiled = run(self, *args, grid=grid, warmup=True, **keywords)
        given = dict(zip(self.arg_names, args)) | {name: value for name, value in keywords.items() if name in self.arg_names}
        threads = 32 * keywords["num_warps"]
        counted = _counted(compiled.asm[CUBIN], given["BLOCK"] / threads)
        launches.append(Launch(self.fn.__name__, grid[0], given, counted))
        return compiled

    JITFunction.run, driver._active, configs.architecture = keep, NoDevice(), lambda device: architecture
    try:
        yield launches
    finally:
        JITFunction.run, driver._active, configs.architecture = run, before, choose


@functools.lru_cache(maxsize=256)
def _counted(cubin: bytes, elements: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tools() / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    return instructions(text, elements)


def instructions(text: str, elements: float) -> float:
    """Instructions of the longest loop that reads memory, an element of a thread, in nvdisasm's text; 0 where there is no such loop."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        label = re.match(r"(\.L_x_\d+):", line.strip())
        if label:
            labels[label[1]] = len(code)
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
        if found:
            code.append(found[1])
    bodies = [code[start : end + 1] for end, start in _jumps(code, labels) if start <= end]
    loops = [body for body in bodies if any("LDG" in instruction for instruction in body)]
    return len(max(loops, key=len, default=[])) / elements


def _jumps(code: list[str], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    for place, instruction in enumerate(code):
        to = re.search(r"BRA\S*\s+.*?`\((\.L_x_\d+)\)", instruction)
        if to and to[1] in labels:
            yield place, labels[to[1]]


def launches_of(architecture: str, call: Callable[[], object]) -> list[Launch]:
    """What `call` launches."""
    with recorded(architecture) as found:
        call()
    return found
