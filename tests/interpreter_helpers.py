"""Oracles of the row kernels' tests: plain torch in any dtype, the error rule, and a random order of programs."""

import contextlib

import torch


def plain_rows(logits, ids, scale, tanh_in):
    """(log_probs, largest z, log of the sum above it, entropy, sum of p^2) by torch, differentiable, in the dtype of `logits` and `scale`."""
    z = scale[:, None] * (torch.tanh(tanh_in * logits) if tanh_in else logits)
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * torch.where(z == float("-inf"), 0.0, log_p)).sum(-1)
    largest = z.amax(-1)
    log_sum = (z - largest[:, None]).exp().sum(-1).log()
    return log_p.gather(-1, ids[:, None])[:, 0], largest, log_sum, entropy, log_p.exp().square().sum(-1)


def apart(log_probs, lse, *others):
    """Results of a launcher with the two columns of lse as results of their own, as `plain_rows` gives them."""
    return log_probs, *lse.unbind(1), *others


def plain_gradient(logits, ids, scale, tanh_in, c, e):
    """d sum(c log_prob + e entropy) / d logits by torch autograd."""
    logits = logits.detach().clone().requires_grad_()
    log_probs, _, _, entropy, _ = plain_rows(logits, ids, scale, tanh_in)
    return torch.autograd.grad((c * log_probs + e * entropy).sum(), logits)[0]


def assert_as_exact_as_torch(got, plain, exact, *, factor):
    """`got` errs from the float64 `exact` by at most `factor` times the error of `plain` torch, plus a floor.

    The floor: 4 ulp of the largest value (float64, where `plain` is the oracle itself: 64 ulp).
    NaN and infinity must stand where they stand in `exact`.
    """
    assert torch.equal(got.isnan(), exact.isnan()) and torch.equal(got.isinf(), exact.isinf()), (got, exact)
    finite = exact.isfinite()
    if not finite.any():
        return
    ulps = 64 * torch.finfo(torch.float64).eps if got.dtype == torch.float64 else 4 * torch.finfo(torch.float32).eps
    got, plain, exact = (value[finite].double() for value in (got, plain, exact))
    plain_error = (plain - exact)[plain.isfinite()].abs().max()  # plain torch may overflow where the kernel does not
    allowed = factor * plain_error + ulps * exact.abs().max()
    error = (got - exact).abs().max()
    assert error <= allowed, f"error {error:.3g} above {allowed:.3g} (plain torch {plain_error:.3g})"


@contextlib.contextmanager
def program_order(order):
    """Run the interpreter's programs in the order of `order`, a permutation of the first grid axis."""
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.set_grid_idx
    interpreter_builder.set_grid_idx = lambda x, y, z: original(order[x], y, z)
    try:
        yield
    finally:
        interpreter_builder.set_grid_idx = original
