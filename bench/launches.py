"""Which of our kernels were launched: watched where Triton and the CUDA grouping launch, so that a verdict can speak of each kernel."""

import ast
import functools
import os
import pathlib
from collections.abc import Callable

from gigpo_fast.anchor import cuda

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "kernels"


def names() -> list[str]:
    """Every kernel of this package: Triton's by their sources, and those of the CUDA grouping."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            jitted = isinstance(node, ast.FunctionDef) and any("jit" in ast.dump(decorator) for decorator in node.decorator_list)
            if jitted and node.name.endswith("_kernel"):
                found.append(node.name)
    return [*found, *cuda.KERNELS]


class Names(set):
    """Names of kernels; `told` is called when a new one comes."""

    told: Callable[[], None] | None = None

    def note(self, *names: str) -> None:
        new = not self.issuperset(names)
        self.update(names)
        if new and self.told is not None:
            self.told()


@functools.cache
def watched() -> Names:
    """A set that every launch from now on puts its kernel's name into, before it launches: one that fails or hangs is in it too."""
    seen = Names()
    _watch_triton(seen)
    _watch_grouping(seen)
    return seen


def _watch_triton(seen: Names) -> None:
    try:
        if os.environ.get("TRITON_INTERPRET") == "1":
            from triton.runtime.interpreter import GridExecutor as Launcher

            method = "__call__"
        else:
            from triton.runtime.jit import JITFunction as Launcher

            method = "run"
    except ImportError:
        return
    launch = getattr(Launcher, method)

    def noted(self, *arguments, **keywords):
        seen.note(self.fn.__name__)
        return launch(self, *arguments, **keywords)

    setattr(Launcher, method, noted)


def _watch_grouping(seen: Names) -> None:
    group_with = cuda.group_with

    def noted(kernels: cuda.Kernels, *arguments, **keywords):
        def noting(function, names):
            def launch(*operands):
                seen.note(*names)
                function(*operands)

            return launch

        watching = cuda.Kernels(noting(kernels.enter, cuda.KERNELS[:-1]), noting(kernels.rehash, cuda.KERNELS[-1:]))
        return group_with(watching, *arguments, **keywords)

    cuda.group_with = noted
