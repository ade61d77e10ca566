"""Value and coefficients of an objective: d loss / d log_prob and d loss / d entropy, by autograd on N-sized tensors.

The formula is written once, in torch, so detach rules are exactly what it says and a new surrogate needs no kernel.
It runs inside a custom op, where autograd has been switched off by excluding its dispatch keys; `local_autograd`
switches it back on for the few small tensors of the formula. Dispatch-key guards are private API: they are used here only.
"""

import contextlib
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..inference import savable
from .batch import TokenBatch
from .block import read
from .measure import measure
from .policy import PolicyObjective, TokenTerms, token_terms

_AUTOGRAD_KEYS = ("AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "AutogradOther", "AutogradPrivateUse1")


class Differentiated(NamedTuple):
    """An objective's value and its derivatives with respect to the two numbers through which it reaches the logits."""

    loss: Tensor  # 0-dim
    d_log_probs: Tensor  # (n,)
    d_entropy: Tensor  # (n,)
    metrics: Tensor  # (metrics.SIZE,)


@contextlib.contextmanager
def local_autograd():
    """Autograd that works inside a custom op, for tensors made here. `torch.enable_grad()` alone does not reach below the op.

    Under inference mode too, so that metrics say of a batch what they say elsewhere.
    What it saves is used and gone before the op returns, so it does not pass through the user's saved_tensors_hooks: managers of
    offloading would carry it away, and take the first unpacking for the start of the backward.
    """
    tracing = torch._C._autograd._saved_tensors_hooks_set_tracing(True)  # how torch sets hooks aside without taking them off
    try:
        with torch.inference_mode(False), _with_autograd_keys(), torch.enable_grad():
            yield
    finally:
        torch._C._autograd._saved_tensors_hooks_set_tracing(tracing)


def _with_autograd_keys() -> contextlib.AbstractContextManager:
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in _AUTOGRAD_KEYS:
        key = getattr(torch._C.DispatchKey, name, None)
        if key is not None:
            excluded = excluded - torch._C.DispatchKeySet(key)
    return torch._C._ForceDispatchKeyGuard(included, excluded)


@functools.lru_cache(maxsize=256)
def objective_from(structure: str, numbers: tuple[float, ...]) -> PolicyObjective:
    """The objective that a custom op was handed as text and numbers."""
    return read(structure, numbers)


def differentiate(objective: PolicyObjective, batch: TokenBatch, denominator: Tensor, part: slice | None = None) -> Differentiated:
    """Evaluate `objective` and differentiate it in log_probs and entropy (packed batch, inside an op).

    With `part`, results are of those tokens only; the others are there because the part's coefficients need their advantages.
    """
    with local_autograd():
        if batch.advantages.is_inference():
            batch = savable("differentiate", "batch", batch)
        log_probs = batch.log_probs.detach().requires_grad_()
        entropy = None if batch.entropy is None else batch.entropy.detach().requires_grad_()
        batch = batch._replace(log_probs=log_probs, entropy=entropy)
        terms = token_terms(objective, batch)
        loss = terms.loss.sum()
        wanted = [log_probs] if entropy is None else [log_probs, entropy]
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else (None, None)
    zeros = torch.zeros_like(log_probs, requires_grad=False)
    d_log_probs = zeros if found[0] is None else found[0]
    d_entropy = zeros if entropy is None or found[1] is None else found[1]
    if part is not None:
        batch, terms = batch.take(part), TokenTerms(*(None if term is None else term[part] for term in terms))
        d_log_probs, d_entropy = d_log_probs[part], d_entropy[part]
        loss = terms.loss.sum()
    skipped = (d_log_probs == 0) & (d_entropy == 0)  # NaN is not equal to 0: it is kept, not skipped
    return Differentiated(loss.detach(), d_log_probs, d_entropy, measure(objective, batch, terms, denominator, skipped=skipped))
