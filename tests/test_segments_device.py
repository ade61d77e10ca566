"""Advantages on a GPU never wait for it: the same code on meta tensors, which have no values, with every operation watched.

An operation that reads a value back, whose result has a length that depends on values, or that touches memory of the host would stall
the queue, and could not be captured in a CUDA graph.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigpo_fast import advantage, backend, validation
from gigpo_fast.advantage import CORRECTED, ROLL, VERL_AGENT

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose}
LENGTHS = {aten.nonzero, aten.nonzero_numpy, aten.argwhere, aten.masked_select, aten.bincount, aten._unique, aten._unique2}
LENGTHS |= {aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.repeat_interleave}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
ROWS = 33


class Watch(TorchDispatchMode):
    """Raises where an operation would wait for the device or leave it."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation.overloadpacket in READS | LENGTHS and kwargs.get("output_size") is None:
            raise AssertionError(f"{operation} waits for the device")
        if operation.overloadpacket in INDEXED and any(index.dtype == torch.bool for index in args[1] if index is not None):
            raise AssertionError(f"{operation} with a bool index waits for the device")
        result = operation(*args, **kwargs)
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                raise AssertionError(f"{operation} touches {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}")
        return result


@contextlib.contextmanager
def watched(path, monkeypatch):
    """Every operation on meta tensors watched, kernels not launched; yields the names of the kernels that would have been."""
    launched = []
    if path == "triton":
        pytest.importorskip("triton", reason="the Triton kernels need triton")
        from gigpo_fast.kernels import segments_moments, segments_scan

        monkeypatch.setattr(backend, "why_not_triton", lambda device: None)
        for module in (segments_moments, segments_scan):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                monkeypatch.setattr(module, name, Stub(name, launched))
    with backend.use(path), validation("metadata"), Watch():
        yield launched


class Stub:
    """Stands in for a kernel."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        assert len(grid) == 1 and isinstance(grid[0], int)

        def launch(*args, **options):
            assert all(value.device.type == "meta" and value.is_contiguous() for value in args if isinstance(value, torch.Tensor))
            self.launched.append(self.name)

        return launch


def columns():
    label = torch.zeros(ROWS, dtype=torch.int64, device="meta")
    return torch.zeros(ROWS, device="meta"), label, label, label


@pytest.mark.parametrize("path", ["torch", "triton"])
@pytest.mark.parametrize("statistics", [CORRECTED, VERL_AGENT, ROLL], ids=["corrected", "verl_agent", "roll"])
def test_gigpo_never_waits(path, statistics, monkeypatch):
    with watched(path, monkeypatch) as launched:
        rewards, *labels = columns()
        valid = torch.ones(ROWS, dtype=torch.bool, device="meta")
        for options in (
            {},
            {"scale": "std", "step": labels[0], "valid": valid},
            {"episode_scores": rewards, "step_returns": rewards.double(), "step_weight": 0.5},
            {"min_trajectories": 2, "first_visit": True, "valid": valid},
        ):
            result = advantage.gigpo_advantages(rewards, *labels, gamma=0.9, statistics=statistics, **options)
            dtype = torch.float64 if "step_returns" in options else torch.float32
            assert {(part.shape, part.dtype, part.device.type) for part in result} == {((ROWS,), dtype, "meta")}
    expected = {"discounted_sums_kernel", "bounds_kernel", "sums_kernel", "totals_kernel", "moments_kernel"} if path == "triton" else set()
    assert set(launched) == expected


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_the_parts_never_wait(path, monkeypatch):
    with watched(path, monkeypatch):
        rewards, label, *_ = columns()
        assert advantage.discounted_returns(rewards, label, gamma=0.9, step=label).device.type == "meta"
        for function in (advantage.group_advantages, advantage.leave_one_out_advantages):
            assert function(rewards, label, trajectory=label).device.type == "meta"
            assert function(rewards.to(torch.bfloat16), label).dtype == torch.float32


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0, 2.0]).to(x.device),
    ],
)
def test_the_watch_sees_a_wait(wait, monkeypatch):
    with watched("torch", monkeypatch):
        x = torch.zeros(4, device="meta")
        with pytest.raises((AssertionError, NotImplementedError), match="waits for the device|touches .* on cpu|no data"):
            wait(x)
