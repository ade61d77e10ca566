"""The upstream scalar is applied in float32 with one rounding on every path, and not at all where it is 1."""

import pytest
import torch

from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import PolicyObjective
from gigpo_fast.ops import scaling
from tests.loss_helpers import make_batch, run_linear

LOW = [torch.bfloat16, torch.float16]
THIRD = torch.tensor(1 / 3)


def values(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def assert_one_rounding(got, gradient, factor):
    """Within half a unit in the last place of the product in float64 (and one rounding of a float32 product before it)."""
    exact, dtype = gradient.double() * factor.double(), gradient.dtype
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    allowed = exact.abs() * torch.finfo(dtype).eps * 0.5 * (1 + 1e-3) + exact.abs() * 2**-24 * (dtype != torch.float64) + smallest
    assert got.dtype == dtype and bool(((got.double() - exact).abs() <= allowed).all())


def as_cuda_multiplies(gradient, factor):
    """What a GPU's in-place product of a low-precision tensor and a 0-dim float32 one computes: the factor is cast first."""
    return (gradient.float() * factor.to(gradient.dtype).float()).to(gradient.dtype)


@pytest.mark.parametrize("dtype", [*LOW, torch.float32], ids=str)
@pytest.mark.parametrize("apply", [scaling.scale_, scaling.scaled, scaling.in_blocks_])
def test_the_product_is_rounded_once(apply, dtype, monkeypatch):
    monkeypatch.setattr(scaling, "_BLOCK", 1000)
    gradient = values((40, 77), dtype)
    assert_one_rounding(apply(gradient.clone(), THIRD), gradient, THIRD)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_scalar_that_is_rounded_first_is_seen(dtype):
    gradient = values((1000,), dtype)
    with pytest.raises(AssertionError):
        assert_one_rounding(as_cuda_multiplies(gradient, THIRD), gradient, THIRD)


def test_no_low_precision_product_with_a_scalar_tensor_is_left_on_other_devices():
    """Tensors of one element with a dimension are cast as a GPU casts them: the block path must not depend on which it is."""
    gradient = values((1000,), torch.bfloat16)
    assert torch.equal(scaling.in_blocks_(gradient.clone(), THIRD), scaling.in_blocks_(gradient.clone(), THIRD.view(1)))


def test_one_leaves_the_gradient_alone():
    gradient = values((100,), torch.bfloat16)
    before = gradient._version
    assert scaling.scale_(gradient, torch.tensor(1.0)) is gradient and gradient._version == before
    copy = scaling.scaled(gradient, torch.tensor(1.0))
    assert torch.equal(copy, gradient) and copy.data_ptr() != gradient.data_ptr()


@pytest.mark.parametrize("retain", [False, True], ids=["last use", "retained"])
@pytest.mark.parametrize("upstream", [1.0, 1 / 3, 0.0])
def test_the_backward_scales_its_gradients(upstream, retain):
    b = make_batch((3, 5), dtype=torch.bfloat16)
    whole, scaled = run_linear(b, PolicyObjective()), run_linear(b, PolicyObjective(), upstream=upstream)
    for name in ("hidden", "weight", "bias"):
        assert_one_rounding(getattr(scaled, name), getattr(whole, name), torch.tensor(upstream))
    if retain:
        hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
        loss = linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, old_log_probs=b.old, objective=PolicyObjective()).loss
        first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
        for _ in range(2):
            again = torch.autograd.grad(loss, weight, torch.tensor(upstream), retain_graph=True)[0]
            assert_one_rounding(again, first, torch.tensor(upstream))
