"""What the fused loss does on a GPU, operation by operation, without one: the real walk over tensors that have shapes and no memory.

Every matrix product, every launch of a row kernel (compiled as it is launched) and every other torch operation is noted with its bytes.
So a change of the walk or of a kernel changes the model at once.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import machine_code
from gigpo_fast import backend
from gigpo_fast.kernels import rows_backward, rows_forward
from gigpo_fast.objective.batch import TokenBatch
from gigpo_fast.ops import fused_loss, gemm, passes, scaling
from gigpo_fast.recipes import recipe

META = torch.device("meta")  # not a CPU, so the walk takes a GPU's branches
NO_WORK = ("empty", "new_empty", "empty_like", "empty_strided", "detach")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm")


class Work(NamedTuple):
    """One operation. A product has m, n, k; a row kernel has instructions."""

    name: str
    read: float  # bytes
    written: float
    m: int = 0
    n: int = 0
    k: int = 0
    instructions: float = 0.0  # of all its elements
    matrix: bool = False  # touches a whole (V, H) matrix


class _Noting(TorchDispatchMode):
    def __init__(self, matrix: int) -> None:
        super().__init__()
        self.found: list[Work] = []
        self.matrix = matrix  # elements of the weight

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if view or name in NO_WORK:
            return out
        inputs = [value for value in _tensors((args, kwargs or {})) if value.device == META]
        results = [value for value in _tensors(out) if value.device == META]
        if not results:
            return out
        fills = name in ("zeros", "zeros_like", "new_zeros", "full", "full_like", "ones", "new_ones", "fill_", "zero_")
        read, written = 0 if fills else sum(map(_bytes, inputs)), sum(map(_bytes, results))
        if name in PRODUCTS:
            a, b = inputs[-2:] if name != "mm" else inputs[:2]
            self.found.append(Work(name, read - _bytes(a) - _bytes(b), written, a.shape[0], b.shape[1], a.shape[1]))
            return out
        if name in ("index_copy_", "copy_", "masked_fill_") and inputs:
            read = sum(map(_bytes, inputs[1:]))  # what is written over is not read
            written = max(map(_bytes, inputs[1:]), default=written) if name == "index_copy_" else written
        if name == "index_select":
            read = written
        self.found.append(Work(name, read, written, matrix=max(value.numel() for value in results) >= self.matrix))
        return out


def fused(tokens: int, backward: int, hidden: int, vocabulary: int, architecture: str, budget: int | None) -> tuple[list[Work], int]:
    """(the work of linear_policy_loss and its backward, the most rows of a chunk) for the clipped loss in bfloat16, a plan given.

    `backward` of the `tokens` have a gradient. The upstream scalar is 1.
    """
    objective = recipe("grpo").objective
    empty = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device=META)  # noqa: E731
    states, weight = empty(tokens, hidden, dtype=torch.bfloat16), empty(vocabulary, hidden, dtype=torch.bfloat16)
    ids, rows, values = empty(tokens, dtype=torch.int64), empty(tokens, dtype=torch.int64), empty(tokens)
    batch = TokenBatch(values, None, values, values, None, values, None, {}, None)
    head = passes.HeadTensors(weight, None, 0.0)
    budget = passes.default_budget(weight) if budget is None else budget
    mask, need = empty(tokens, dtype=torch.bool), [True, True, False]
    numbers = objective.numbers, objective.structure
    with _as_on_a_gpu(architecture) as launches, _Noting(weight.numel()) as noting:
        found = fused_loss.run(
            states, head, ids, mask, rows, backward, None, values, batch, empty(()), numbers[1], numbers[0], need, budget, False
        )  # fmt: skip
        held = passes.held_dtype(weight)
        gradients = found.d_hidden.to(passes.held_dtype(states)), found.d_weight().to(held)
        for gradient in gradients:
            scaling.scale_(gradient, empty(()))
    return noting.found + [of_kernel(launch) for launch in launches], found.most


def logits(tokens: int, vocabulary: int, dtype: torch.dtype, architecture: str) -> list[Work]:
    """The work of `token_log_probs` and its backward on logits (tokens, vocabulary)."""
    x, ids = torch.empty(tokens, vocabulary, dtype=dtype, device=META), torch.empty(tokens, dtype=torch.int64, device=META)
    one, lse = torch.empty(tokens, device=META), torch.empty(tokens, 2, device=META)
    with _as_on_a_gpu(architecture) as launches:
        rows_forward.rows_forward(x, ids, one, 0.0)
        rows_backward.rows_backward(x, ids, one, 0.0, lse, one, one, one, torch.empty_like(x))
    return [of_kernel(launch) for launch in launches]


@contextlib.contextmanager
def _as_on_a_gpu(architecture: str) -> Iterator[list[machine_code.Launch]]:
    with (
        machine_code.recorded(architecture) as launches,
        mock.patch.object(backend, "choose", lambda device: "triton"),
        mock.patch.object(gemm, "_has_out_dtype", lambda device, dtype: True),
        mock.patch.object(rows_backward, "overlap", lambda a, b: False),  # tensors without memory all lie at address 0
    ):
        yield launches


def of_kernel(launch: machine_code.Launch) -> Work:
    """A row kernel reads its logits and writes its gradient; the scalar's kernel reads a scalar that is 1, and is done."""
    logits, out = launch.given.get("logits"), launch.given.get("out")
    if logits is None:
        return Work(launch.kernel, 0, 0)
    elements = launch.rows * launch.given["V"]
    written = 0 if out is None else elements * out.element_size()
    return Work(launch.kernel, elements * logits.element_size(), written, instructions=elements * launch.instructions)


def _tensors(tree) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
