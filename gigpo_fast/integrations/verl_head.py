"""verl's fused head on this engine: log-probs and entropies from hidden states, and no logits.

with use_fused_head():        # before the model is built; or a plain call, whose result has .close()
    ...                       # model.use_fused_kernels=True, model.fused_kernel_options.impl_backend=torch
"""

import contextlib
import contextvars
import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..head import Head
from ..logprob import linear_token_log_probs
from .transformers import policy_head
from .verl_version import check_verl

_FUNCTIONAL = "verl.utils.experimental.torch_functional"
_PATCH = "verl.models.transformers.monkey_patch"
_FORWARDS = ("dense_common", "qwen2_vl", "qwen3_vl", "glm4v", "qwen3_5")
_model: contextvars.ContextVar[nn.Module | None] = contextvars.ContextVar("gigpo_fast_verl_model", default=None)


class FusedTokenHead(nn.Module):
    """verl's FusedLinearForPPO over `logprob.linear_token_log_probs`: the same constructor and forward.

        logits = (hidden_states @ vocab_weights.T).float() / temperature
        log_p = torch.log_softmax(logits, -1)
        return log_p.gather(-1, input_ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)

    Both results float32 (verl rounds the entropy to the hidden's dtype). Logits are never rounded to the hidden's dtype, d_weight is
    rounded once instead of once a chunk. Tokens without upstream gradient, prompts for example, cost no backward on a CPU.
    `chunk_size` is the memory for logits in rows of float32; None takes the default of `linear_token_log_probs`.
    """

    def __init__(self, chunk_size: int | None = None, impl_backend: str = "torch") -> None:
        super().__init__()
        if impl_backend != "torch":
            got = f"{impl_backend!r} and gigpo_fast's head, two fused heads for one model"
            checks.fail(
                "FusedTokenHead", "impl_backend", "'torch'", got, "set model.fused_kernel_options.impl_backend=torch, or leave ours out"
            )
        if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
            checks.fail("FusedTokenHead", "chunk_size", "an int >= 1 or None", chunk_size, "512 is verl's default")
        self.chunk_size, self.impl_backend = chunk_size, impl_backend

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, H) or (N, H)
        vocab_weights: Tensor,  # (V, H)
        input_ids: Tensor,  # (B, T) or (N,): the token that each position predicts
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        chunk_bytes = None if self.chunk_size is None else self.chunk_size * vocab_weights.shape[0] * 4
        found = linear_token_log_probs(
            hidden_states, self.head(vocab_weights), input_ids.to(torch.int64), temperature=temperature, chunk_bytes=chunk_bytes
        )
        return found.log_probs, found.entropy

    def head(self, weight: Tensor) -> Head:
        """The head that `weight` belongs to; here nothing but the weight is known."""
        return Head(weight)


class _ModelHead(FusedTokenHead):
    """What verl's forwards find in place of FusedLinearForPPO: the head of the model that is running, with bias, scale and softcap."""

    def head(self, weight: Tensor) -> Head:
        model = _model.get()
        if model is None:
            checks.fail(
                "use_fused_head",
                "the model's forward",
                "one that verl chose after use_fused_head()",
                "one from before, or of another engine, whose logit scale, softcap and bias are not known here",
                "call use_fused_head() before the model is built; outside verl's transformers engines use FusedTokenHead",
            )
        return policy_head(model)._replace(weight=weight)


def use_fused_head() -> contextlib.ExitStack:
    """Put our head in the place of verl's torch backend (use_fused_kernels=True, impl_backend=torch) in this process.

    Call it before models are built, in every worker (VERL_USE_EXTERNAL_MODULES=gigpo_fast.integrations.verl_use_head does). What the
    model does to its logits (bias, logit scale, softcap), which verl's own fused head leaves out, is honoured; a model whose
    architecture is not known raises by name when verl patches it. Returns a context manager; `.close()` undoes it, also for models
    that were patched meanwhile. Raises for another version of verl, for a second call, and, when verl patches a model, for the
    backends triton and liger.
    """
    check_verl("use_fused_head")
    functional, patch = importlib.import_module(_FUNCTIONAL), importlib.import_module(_PATCH)
    forwards = [importlib.import_module(f"verl.models.transformers.{name}") for name in _FORWARDS]
    current = functional.FusedLinearForPPO
    if current.__module__ != _FUNCTIONAL:
        got = f"{current.__module__}.{current.__qualname__} in its place"
        checks.fail("use_fused_head", "FusedLinearForPPO", "verl's own", got, "use one of the two, or close the other first")
    undo = contextlib.ExitStack()

    def put(module: Any, name: str, value: Any) -> None:
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    put(functional, "FusedLinearForPPO", _ModelHead)
    put(patch, "patch_forward_with_backends", _checked(patch.patch_forward_with_backends))
    for module in forwards:
        put(module, "forward_with_torch_backend", _with_model(module.forward_with_torch_backend))
    return undo


def _with_model(forward: Callable) -> Callable:
    """verl's forward, with the model it runs known to the head."""

    @functools.wraps(forward)
    def run(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        token = _model.set(self)
        try:
            return forward(self, *arguments, **keywords)
        finally:
            _model.reset(token)

    return run


def _checked(patch: Callable) -> Callable:
    """verl's choice of a forward, refused where our head would not be reached or would not know the model."""

    @functools.wraps(patch)
    def run(model: nn.Module, use_fused_kernels: bool = False, fused_kernels_backend: str | None = None) -> None:
        name = type(model).__name__
        if not use_fused_kernels or fused_kernels_backend is None:
            warnings.warn(
                f"use_fused_head: {name} runs without it (use_fused_kernels={use_fused_kernels}, impl_backend={fused_kernels_backend})",
                stacklevel=2,
            )
        elif fused_kernels_backend != "torch":
            got = f"{fused_kernels_backend!r} for {name} and use_fused_head(), two fused heads for one model"
            checks.fail("use_fused_head", "fused_kernel_options.impl_backend", "'torch'", got, "switch one of them off")
        else:
            policy_head(model)
        return patch(model, use_fused_kernels=use_fused_kernels, fused_kernels_backend=fused_kernels_backend)

    return run
