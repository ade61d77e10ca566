"""Fused head and clipped loss, forward and backward as one unit, against every peer at right answers."""

import peers
import pytest
import shapes
import torch
from timing import paired, peak_bytes


def step(loss_of, batch: shapes.Batch) -> torch.Tensor:
    batch.hidden.grad = batch.weight.grad = None
    loss = loss_of(batch)
    loss.backward()
    return loss.detach()


@pytest.fixture(scope="module", params=shapes.CPU, ids=lambda shape: shape.name)
def case(request):
    """A batch with the eager answer, which is computed once."""
    batch = shapes.make(request.param)
    loss = step(peers.eager, batch)
    return request.param, batch, loss, batch.hidden.grad.clone(), batch.weight.grad.clone()


def peak_of(run, batch: shapes.Batch) -> int | None:
    """Peak memory of a step that starts without gradients, so that those it leaves behind are counted."""
    batch.hidden.grad = batch.weight.grad = None
    return peak_bytes(run)


def errors(batch: shapes.Batch, loss, expected) -> dict[str, float]:
    """Relative errors; a run counts only if its answer is right."""
    expected_loss, d_hidden, d_weight = expected
    found = {
        "loss": float((loss - expected_loss).abs() / expected_loss.abs()),
        "hidden": float((batch.hidden.grad - d_hidden).abs().max() / d_hidden.abs().max()),
        "weight": float((batch.weight.grad - d_weight).abs().max() / d_weight.abs().max()),
    }
    assert found["loss"] <= 1e-5 and found["hidden"] <= 1e-4 and found["weight"] <= 1e-4, f"wrong answer: {found}"
    return found


@pytest.mark.parametrize("peer", list(peers.PEERS))
def test_peer(benchmark, case, peer, report_ratio):
    shape, batch, *expected = case
    benchmark.group = shape.name
    other, own = (lambda: step(peers.PEERS[peer], batch)), (lambda: step(peers.ours, batch))
    benchmark.extra_info |= {"error": errors(batch, other(), expected), "peak_bytes": peak_of(other, batch)}
    errors(batch, own(), expected)
    ratio = paired(benchmark, other, own)
    report_ratio(f"{shape.name:>6}  {peer:<16} {ratio:5.2f}x   peak memory {_mebibytes(benchmark.extra_info['peak_bytes'])}")


def test_ours(benchmark, case, report_ratio):
    shape, batch, *expected = case
    benchmark.group = shape.name
    own = lambda: step(peers.ours, batch)  # noqa: E731
    benchmark.extra_info |= {"error": errors(batch, own(), expected), "peak_bytes": peak_of(own, batch)}
    ratio = paired(benchmark, lambda: peers.bare_gemms(batch), own)
    report_ratio(
        f"{shape.name:>6}  {'three bare GEMMs':<16} {ratio:5.2f}x   ours: peak memory {_mebibytes(benchmark.extra_info['peak_bytes'])}"
    )


def _mebibytes(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**20:.0f} MiB"
