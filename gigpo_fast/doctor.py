"""What this machine gives the package: versions, devices, the path each operation takes, why not a faster one, and how to change it.

A fallback that nobody sees is a slow mystery, so everything that `backend` decides is printed here with its reason.
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import __version__, backend
from .anchor import grouping

PACKAGES = ("torch", "triton", "numpy", "transformers", "liger-kernel")
VARIABLES = {
    "GIGPO_FAST_BACKEND": "which path runs: auto, triton, native or torch",
    "GIGPO_FAST_VALIDATE": "how much is checked: auto, full or metadata",
    "GIGPO_FAST_HASH_SEED": "a fixed seed for the fingerprints of anchor grouping (no id depends on it)",
    "XDG_CACHE_HOME": "where compiled CUDA kernels of grouping are kept (~/.cache without it)",
    "TRITON_INTERPRET": "1 interprets Triton kernels on a CPU, slowly",
    "OMP_NUM_THREADS": "threads of CPU operations",
    "CUDA_VISIBLE_DEVICES": "which GPUs are visible",
}
FASTEST_ROWS = {"cuda": "triton", "cpu": "native"}


class Path(NamedTuple):
    """How one operation runs on one device."""

    operation: str
    device: str
    path: str  # triton, native, torch, or error
    reason: str | None  # why not the fastest path of this device; None if it is the fastest


def paths() -> list[Path]:
    """The path of every operation on every visible kind of device."""
    found = []
    for device in devices():
        found.append(_path("log-probs, fused losses (row kernels)", device, _rows_path))
        found.append(_path("anchor grouping", device, grouping.path))
        found.append(_path("advantages (segment kernels)", device, _rows_path))
        found.append(_path("objectives", device, lambda device: ("torch", None)))
    return found


def devices() -> list[torch.device]:
    """The CPU, and the current CUDA device if there is one."""
    return [torch.device("cpu")] + ([torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else [])


def report() -> dict:
    """Everything the doctor knows, as plain values."""
    library = backend.native_library()
    return {
        "gigpo_fast": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": {str(device): _describe(device) for device in devices()},
        "native_library": {"path": None if library is None else library.name, "problem": backend.why_not_native(torch.device("cpu"))},
        "paths": [path._asdict() for path in paths()],
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def run(*, selftest: bool = False, as_json: bool = False, native_only: bool = False) -> int:
    """Print the report, and the self-test if asked for. Returns 1 if a comparison failed, else 0."""
    if native_only:
        print(f"gigpo_fast: {_native_line()}")
        return 0
    found = report()
    if not as_json:
        print(_text(found))
    if not selftest:
        if as_json:
            print(json.dumps(found, indent=2))
        return 0
    from . import selftest as tests

    started, results = time.perf_counter(), []
    if not as_json:
        print("\nself-test: every operation against the float64 reference")
    for result in tests.results(devices()):
        results.append(result)
        if not as_json:
            print(f"  {'ok   ' if result.ok else 'WRONG'}  {result.name:<54} {_first_lines(result.note)}", flush=True)
    wrong = sum(not result.ok for result in results)
    if as_json:
        print(json.dumps({**found, "selftest": [result._asdict() for result in results]}, indent=2))
    else:
        print(f"self-test: {len(results) - wrong} of {len(results)} agree, {time.perf_counter() - started:.0f} s")
        if wrong:
            print("Something here computes wrongly: this package or a compiler. Run with GIGPO_FAST_BACKEND=torch, and report these lines.")
    return int(wrong > 0)


def _path(operation: str, device: torch.device, choose: Callable[[torch.device], tuple[str, str | None]]) -> Path:
    try:
        return Path(operation, device.type, *choose(device))
    except RuntimeError as error:  # a path asked for by name that cannot run here
        return Path(operation, device.type, "error", str(error))


def _rows_path(device: torch.device) -> tuple[str, str | None]:
    name = backend.choose(device)
    if name == FASTEST_ROWS[device.type]:
        return name, None
    if backend.requested() != "auto":
        return name, f"backend {backend.requested()!r} was asked for"
    return name, backend.why_not_triton(device) if device.type == "cuda" else backend.why_not_native(device)


def _first_lines(note: str, most: int = 4) -> str:
    lines = note.splitlines()
    return "\n         ".join(lines[:most] + ([f"  and {len(lines) - most} more"] if len(lines) > most else []))


def _native_line() -> str:
    reason = backend.why_not_native(torch.device("cpu"))
    return "the C++ library is built and loads" if reason is None else f"CPU operations run on pure torch: {reason}"


def _version(name: str) -> str | None:
    if name == "torch":
        return torch.__version__  # with the build, such as +cu130, which a wheel's metadata leaves out
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def _text(found: dict) -> str:
    versions = ", ".join(f"{name} {version or '(not installed)'}" for name, version in found["packages"].items())
    lines = [
        f"gigpo_fast {found['gigpo_fast']}, Python {found['python']}, {found['platform']}",
        versions,
        *(f"{name}: {description}" for name, description in found["devices"].items()),
        f"C++ library: {found['native_library']['path'] or 'none'}",
        "",
    ]
    reasons: dict[str, int] = {}  # each distinct reason once, by number
    for path in found["paths"]:
        note = f" ({reasons.setdefault(path['reason'], len(reasons) + 1)})" if path["reason"] else ""
        lines.append(f"  {path['device']:<5} {path['operation']:<40} {path['path']}{note}")
    lines += [f"  ({number}) not a faster path: {reason}" for reason, number in reasons.items()]
    lines += ["", "environment (all optional):"]
    lines += [f"  {name:<22} {found['environment'].get(name, '(not set)'):<12} {meaning}" for name, meaning in VARIABLES.items()]
    return "\n".join(lines)
