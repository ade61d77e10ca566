"""A peer: whoever else computes the same thing. One that is not installed skips with its install line, one that cannot run says why."""

import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from bench.shapes import Shape


class Peer(NamedTuple):
    """`make(device)` imports what it needs and returns the function to time; its docstring says which setting was chosen."""

    name: str
    make: Callable[[torch.device], Callable]
    package: str = "torch"  # the distribution to install
    gpu: bool = False  # has nothing to run on a CPU
    compacts: bool = False  # for batches with untrained tokens only: elsewhere it is its dense twin
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")  # what it takes and is right in
    compiles: bool = False  # its first step is another thing: not to be measured even for memory
    overwrites: bool = False  # destroys its inputs, so they are restored before each round, untimed

    def load(self, shape: Shape, device: torch.device) -> Callable:
        """The function, ready to call; skips the test where it cannot run."""
        if self.gpu and device.type != "cuda":
            pytest.skip(f"{self.name} needs a CUDA device")
        if self.compacts and shape.trained == 1:
            pytest.skip(f"{self.name}: every token is trained, nothing to leave out")
        if shape.dtype not in self.dtypes:
            pytest.skip(f"{self.name} is compared in {' and '.join(self.dtypes)} only")
        try:
            return self.make(device)
        except ImportError as error:
            pytest.skip(f"{self.name}: pip install {self.package} ({error})")

    def version(self) -> str:
        return version_of(self.package)


class Registry(dict[str, Peer]):
    """The peers of one problem by name."""

    def add(self, **properties):
        """Decorator: register a maker under its own name."""

        def register(make):
            self[make.__name__] = Peer(make.__name__, make, **properties)
            return make

        return register


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def compiled(function: Callable, device: torch.device) -> Callable:
    """torch.compile with static shapes, its best setting. Skips where inductor cannot compile: a CPU needs a C++ compiler, a GPU Triton."""
    if device.type == "cuda":
        import triton  # noqa: F401
    else:
        _needs_cpp_compiler()
    # By default the ninth shape of a function silently runs uncompiled.
    limits = torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024, fail_on_recompile_limit_hit=True)
    return limits(torch.compile(function, dynamic=False))


def _needs_cpp_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        pytest.skip(f"torch.compile needs a C++ compiler on a CPU: {str(error).splitlines()[0]}")
