"""GiGPO's advantages on a GPU: the bits of the CPU, twice the same, and captured in a CUDA graph."""

import pytest
import torch

from gigpo_fast import advantage, backend, segments, validation
from tests import gpu
from tests.segments_helpers import KINDS, assert_same, batch, uneven

pytestmark = gpu.marks
OPTIONS = {"gamma": 0.95, "scale": "std"}


def columns(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    trajectory = torch.randint(0, rows // 20 + 1, (rows,), generator=generator)
    anchor = torch.randint(-1, 40, (rows,), generator=generator)
    rewards, valid = torch.randn(rows, generator=generator), torch.rand(rows, generator=generator) < 0.95
    given = {"rewards": rewards, "trajectory": trajectory, "group": trajectory // 8, "anchor": anchor, "valid": valid}
    return given | {"step": torch.randperm(rows, generator=generator)}


def moved(given):
    return {name: tensor.to(gpu.DEVICE) for name, tensor in given.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_give_the_bits_of_torch_on_a_cpu(kind):
    given = batch(kind, 5000, 300)
    here = [tensor.to(gpu.DEVICE) for tensor in given]
    with backend.use("torch"):
        expected, totals, sums = (
            segments.segment_moments(*given, 1),
            segments.segment_totals(*given),
            segments.discounted_sums(*given, 0.97),
        )
    for _ in range(3):
        assert_same([result.cpu() for result in segments.segment_moments(*here, 1)], expected)
        for ours, theirs in ((segments.segment_totals(*here), totals), (segments.discounted_sums(*here, 0.97), sums)):
            assert torch.equal(ours.cpu().nan_to_num(nan=0.5), theirs.nan_to_num(nan=0.5))


def test_one_segment_of_a_million_rows_among_a_hundred_thousand_of_one():
    values, label = uneven(1_000_000, 100_000)
    given = values, torch.ones_like(label, dtype=torch.bool), *segments.sort_segments([label], [])
    here = [tensor.to(gpu.DEVICE) for tensor in given]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(segments.sort_segments([label.to(gpu.DEVICE)], []), given[2:], strict=True))
    assert_same([result.cpu() for result in segments.segment_moments(*here, 1)], segments.segment_moments(*given, 1))


@pytest.mark.parametrize("rows", [1, 16_384, 100_001])
def test_gigpo(rows):
    given = columns(rows)
    with validation("metadata"):
        expected, found = (advantage.gigpo_advantages(**each, **OPTIONS) for each in (given, moved(given)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-7, atol=1e-12)  # a root may differ in its last bit, then rounds once


@gpu.real_gpu
def test_gigpo_in_a_cuda_graph():
    first, second = moved(columns(16_384)), moved(columns(16_384, seed=1))
    with validation("metadata"):
        expected = advantage.gigpo_advantages(**second, **OPTIONS)
        advantage.gigpo_advantages(**first, **OPTIONS)  # compiles what there is to compile
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = advantage.gigpo_advantages(**first, **OPTIONS)
    for name, tensor in second.items():
        first[name].copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
