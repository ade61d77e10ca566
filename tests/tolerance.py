"""The rule by which a result is right: its error against float64 is at most a multiple of plain torch's own error, plus a stated floor."""

import torch
from torch import Tensor

VALUE, GRADIENT = 2.0, 3.0


def error(value: Tensor, oracle: Tensor) -> float:
    """The largest absolute difference. Places where both are the same infinity or both NaN agree; NaN on one side is infinite."""
    value, oracle = value.detach().cpu().double(), oracle.detach().cpu().double()
    assert value.shape == oracle.shape, f"shapes differ: {tuple(value.shape)} and {tuple(oracle.shape)}"
    same = (value == oracle) | (value.isnan() & oracle.isnan())
    difference = torch.where(same, 0.0, (value - oracle).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(difference.max()) if difference.numel() else 0.0


def assert_no_worse_than(name: str, got: Tensor, oracle64: Tensor, same_dtype: Tensor, *, factor: float, floor: float = 0.0) -> None:
    """error(got) <= factor * error(same_dtype) + floor, all against the float64 oracle."""
    ours, plain = error(got, oracle64), error(same_dtype, oracle64)
    allowed = factor * plain + floor
    assert ours <= allowed, f"{name}: error {ours:.3g}, allowed {factor} x {plain:.3g} + {floor:.3g} = {allowed:.3g}"


def roundings(oracle64: Tensor, dtype: torch.dtype, count: float) -> float:
    """A floor: `count` roundings (half a unit in the last place) of the largest entry."""
    return count * torch.finfo(dtype).eps / 2 * (float(oracle64.abs().max()) if oracle64.numel() else 0.0)


def assert_same_bits(name: str, got: Tensor | None, want: Tensor | None) -> None:
    """Equal in every bit that is a value: dtype, shape, numbers; NaN equals NaN."""
    if got is None or want is None:
        assert got is want, f"{name}: one of them is None"
        return
    assert got.dtype == want.dtype and got.shape == want.shape, (
        f"{name}: {got.dtype} {tuple(got.shape)} and {want.dtype} {tuple(want.shape)}"
    )
    assert torch.equal(got.nan_to_num(nan=12345.0), want.nan_to_num(nan=12345.0)), f"{name}: differs by up to {error(got, want):.3g}"
