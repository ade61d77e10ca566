"""Which path runs an operation (triton, native C++, torch), why, and how to change it.

`auto` picks by device: CUDA runs Triton, a CPU runs the C++ rows if they were built, everything else runs torch.
A path that is asked for by name and is missing raises; only `auto` falls back. Libraries load on first use.
"""

import contextlib
import contextvars
import functools
import importlib.util
import os
import pathlib

import torch

BACKENDS = ("auto", "triton", "native", "torch")
INSTALL_NATIVE = "with a C++ compiler, from a clone: pip install --no-build-isolation ."

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("gigpo_fast_backend", default=None)


@contextlib.contextmanager
def use(name: str):
    """Run a `with` block on one path: "triton", "native", "torch", or "auto" (by device). A missing path raises at the call."""
    if name not in BACKENDS:
        raise ValueError(f"backend.use: name must be one of {BACKENDS}, got {name!r}; see python -m gigpo_fast doctor")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def requested() -> str:
    """The path asked for: the innermost `use`, else GIGPO_FAST_BACKEND, else "auto"."""
    name = _chosen.get() or os.environ.get("GIGPO_FAST_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"backend: GIGPO_FAST_BACKEND must be one of {BACKENDS}, got {name!r}; unset it or correct it")
    return name


def choose(device: torch.device) -> str:
    """The path for tensors on `device`: "triton", "native" or "torch". Raises if a path asked for by name cannot run there."""
    name = requested()
    if name == "auto":
        if device.type == "cuda":
            return "triton" if why_not_triton(device) is None else "torch"
        return "native" if why_not_native(device) is None else "torch"
    reason = {"triton": why_not_triton, "native": why_not_native}.get(name, lambda device: None)(device)
    if reason is not None:
        raise RuntimeError(f'backend: {name!r} was asked for but cannot run on {device}: {reason}; use backend "auto" or mend that')
    return name


def why_not_triton(device: torch.device) -> str | None:
    """None if Triton kernels can run on `device`, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'triton>=3.6')"
    if device.type == "cuda" or (device.type == "cpu" and interpreting()):
        return None
    return "Triton kernels need a CUDA device (on a CPU set TRITON_INTERPRET=1 before the first import of triton to interpret them)"


def why_not_native(device: torch.device) -> str | None:
    """None if the C++ library serves `device`, else the reason."""
    if device.type != "cpu":
        return "the native library serves CPU tensors"
    return _load_native()


def interpreting() -> bool:
    """True if Triton kernels run in the interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def native_library() -> pathlib.Path | None:
    """Where the C++ library lies, or None if it was not built."""
    folder = pathlib.Path(__file__).parent
    return next(iter(sorted(folder.glob("_C*.so"))), None)


@functools.cache
def _load_native() -> str | None:
    path = native_library()
    if path is None:
        return f"the C++ library was not built ({INSTALL_NATIVE})"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # for example built against an older torch
        return f"{path.name} does not load: {str(error).splitlines()[0]} ({INSTALL_NATIVE})"
    return None
