"""The kernel that applies the upstream scalar, in Triton's interpreter. Runs in a process of its own (test_kernels_spawn.py starts it)."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported; test_kernels_spawn.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

import torch

from gigpo_fast import backend
from gigpo_fast.kernels.scale import scale_
from gigpo_fast.objective import PolicyObjective
from tests.loss_helpers import make_batch, run_linear
from tests.test_scaling import assert_one_rounding, values

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 9), (64,), (65, 3)])
def test_the_product_is_rounded_once(shape, dtype):
    gradient, factor = values(shape, dtype), torch.tensor(1 / 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    got = gradient.clone()
    scale_(got, factor, block=64)
    if dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        want = (gradient.float() * factor).view(torch.int32) >> 16
        assert torch.equal(got.view(torch.int16).int(), want)
    else:
        assert_one_rounding(got, gradient, factor)


def test_a_scalar_of_one_writes_nothing():
    """Bits of a NaN and all stay as they are."""
    gradient = values((100,), torch.bfloat16)
    gradient[3] = float("nan")
    got = gradient.clone()
    scale_(got, torch.tensor(1.0), block=64)
    assert torch.equal(got.view(torch.int16), gradient.view(torch.int16))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0])
def test_no_scalar_but_one_is_left_out(factor):
    got = values((10,), torch.bfloat16)
    want = got.float() * factor
    scale_(got, torch.tensor(factor), block=64)
    assert torch.equal(got.float().isnan(), want.isnan()) and torch.equal(got.nan_to_num(), want.bfloat16().nan_to_num())


def test_the_loss_backward_takes_it():
    """Same gradients as the torch path, for an upstream gradient that low precision cannot hold."""
    b = make_batch((3, 5), dtype=torch.bfloat16)
    found = []
    for path in ("torch", "triton"):
        with backend.use(path):
            found.append(run_linear(b, PolicyObjective(), upstream=1 / 3))
    for name in ("hidden", "weight", "bias"):
        one, other = (getattr(out, name).double() for out in found)
        assert float((one - other).abs().max()) <= 2**-7 * float(one.abs().max())


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"scale_: factor must be 0-dim on cpu, got \(1,\) float32 on cpu; pass the upstream gradient"):
        scale_(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match="scale_: values must be a contiguous .*; call .contiguous"):
        scale_(torch.ones(3, 2).T, torch.ones(()))
    scale_(torch.ones(3, 2).T.contiguous(), torch.ones(()))
