"""Log-probs and entropies in plain torch, for torch's transforms: forward mode, torch.func, and derivatives of any order.

The custom ops are one node with one backward. Under a transform the same numbers come from here: blocks of rows, each an
autograd.Function that keeps its inputs alone, forms its logits anew for every derivative, and is differentiable as often as one likes,
because derivatives are plain torch too. So a first derivative holds the logits of one block, never N x V.

    z = scale * x  or  scale * tanh(tanh_in * x);  p = softmax(z);  H = -sum p log p
    forward mode:  log_prob' = z'_y - sum p z';    H' = -sum p (log p + H) z'
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..checks import compute_dtype
from ..transforms import nested_forward
from .passes import MINIMUM_ROWS, HeadTensors, chunk_rows

_COPIES = 8  # of a block's logits that its derivatives hold at once
_LOGITS_BUDGET = 1 << 30  # bytes for a block of given logits


def rows_of_logits(logits: Tensor, token_ids: Tensor, scale: Tensor, tanh_in: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log_probs (n,), entropy (n,), sum of squared probabilities (n,), without gradient) of logits (n, V)."""
    most = max(MINIMUM_ROWS, _LOGITS_BUDGET // max(logits.shape[1] * scale.element_size() * _COPIES, 1))
    return _in_blocks(logits, None, None, token_ids, scale, tanh_in, most)


def rows_of_hidden(
    function: str,
    hidden: Tensor,
    head: HeadTensors,
    token_ids: Tensor,
    scale: Tensor,
    *,
    budget: int,
    invariant: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `rows_of_logits`, of hidden (n, H) x head; refuses what plain torch cannot do.

    Low-precision operands are cast once, outside of the blocks: products run in the compute dtype, and a gradient is rounded once.
    """
    where = "under torch.func and forward mode"
    if head.shards.group_name:
        fix = "differentiate with backward(), or gather the head's columns first"
        checks.fail(function, "head.group_name", f"None {where}", f"a vocabulary-parallel head of group {head.shards.group_name}", fix)
    if invariant:
        checks.fail(function, "invariant", f"False {where}", True, "leave it out there: plain torch multiplies as many rows as there are")
    cast = lambda value: None if value is None else value.to(compute_dtype(value.dtype))  # noqa: E731
    most = max(MINIMUM_ROWS, chunk_rows(function, head, budget) // _COPIES)
    return _in_blocks(cast(hidden), cast(head.weight), cast(head.bias), token_ids, scale, head.tanh_in, most)


def gradients_of_blocks(
    source: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    token_ids: Tensor,
    scale: Tensor,
    tanh_in: float,
    d_log_probs: Tensor,
    d_entropy: Tensor,
    need: list[bool],
    budget: int = _LOGITS_BUDGET,
) -> tuple[Tensor | None, ...]:
    """The gradients of a custom op whose backward runs under a transform, as torch.autograd.grad(..., is_grads_batched=True) does."""
    dtype = scale.dtype
    wide = None if weight is None else weight.to(dtype)
    columns = source.shape[1] if weight is None else weight.shape[0]
    most = max(MINIMUM_ROWS, budget // (columns * dtype.itemsize * _COPIES))
    parts = []
    for start in range(0, max(source.shape[0], 1), most):
        rows = slice(start, start + most)
        block = source[rows] if weight is None else source[rows].to(dtype)
        tokens = token_ids[rows], scale[rows], tanh_in, d_log_probs[rows], d_entropy[rows]
        parts.append(gradients_of_rows(block, wide, bias, *tokens, need))
    d_source, d_weight, d_bias = zip(*parts)
    like = lambda total, own: total.to(own.dtype)  # noqa: E731
    return (
        like(torch.cat(d_source), source) if need[0] else None,
        like(sum(d_weight), weight) if need[1] else None,
        like(sum(d_bias), bias) if need[2] else None,
    )


def _in_blocks(
    source: Tensor, weight: Tensor | None, bias: Tensor | None, token_ids: Tensor, scale: Tensor, tanh_in: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():  # it takes no jvp of one's own, blocks would fix the length, and the graph says what is kept
        return _of_block(source, weight, bias, token_ids, scale, tanh_in, _formula)
    # In a jvp of a jvp torch takes the derivative of an autograd.Function's jvp for 0: there the formula stands as it is.
    function = _formula if nested_forward() else Rows.apply
    found = []
    for start in range(0, max(source.shape[0], 1), most):
        rows = slice(start, start + most)
        found.append(_of_block(source[rows], weight, bias, token_ids[rows], scale[rows], tanh_in, function))
    return tuple(torch.cat(parts) for parts in zip(*found))


def _of_block(source, weight, bias, token_ids, scale, tanh_in, function) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(source.device.type, enabled=False):
        log_probs, entropy, squared = function(source, weight, bias, token_ids, scale, tanh_in)
    return log_probs, entropy, squared.detach()


class Rows(torch.autograd.Function):
    """(log_probs, entropy, squared) of rows; `source` (m, V) are the logits, or (m, H) hidden states where there is a weight (V, H)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(source, weight, bias, token_ids, scale, tanh_in):
        return _formula(source, weight, bias, token_ids, scale, tanh_in)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.tanh_in = inputs
        ctx.set_materialize_grads(False)  # no products with zeros the size of the weight
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, d_log_probs: Tensor | None, d_entropy: Tensor | None, _: None):
        source, need = ctx.saved_tensors[0], ctx.needs_input_grad[:3]
        with torch.autocast(source.device.type, enabled=False):  # a transform may run it inside the caller's
            return *gradients_of_rows(*ctx.saved_tensors, ctx.tanh_in, d_log_probs, d_entropy, need), None, None, None

    @staticmethod
    def jvp(ctx: Any, d_source: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, *_):
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return tangents_of_rows(*ctx.saved_tensors, ctx.tanh_in, d_source, d_weight, d_bias)


class _Softmax(NamedTuple):
    """Of rows (m, V)."""

    log_p: Tensor
    p: Tensor
    entropy: Tensor  # (m,)
    spread: Tensor  # log p + H, 0 where p is
    slope: Tensor  # dz / dx


def _softmax(source, weight, bias, token_ids, scale, tanh_in) -> _Softmax:
    if weight is None:
        x = source.to(scale.dtype)
    else:
        x = source @ weight.t() if bias is None else source @ weight.t() + bias
    slope = scale.unsqueeze(-1)
    if tanh_in:
        x = torch.tanh(x * tanh_in)
        log_p, slope = torch.log_softmax(slope * x, -1), slope * tanh_in * (1 - x * x)
    else:
        log_p, slope = torch.log_softmax(slope * x, -1), slope.expand_as(x)
    p = log_p.exp()
    possible = torch.where(p == 0, 0, log_p)  # 0 * -inf counts 0
    entropy = -(p * possible).sum(-1)
    return _Softmax(log_p, p, entropy, torch.where(p == 0, 0, possible + entropy.unsqueeze(-1)), slope)


def _formula(source, weight, bias, token_ids, scale, tanh_in) -> tuple[Tensor, Tensor, Tensor]:
    found = _softmax(source, weight, bias, token_ids, scale, tanh_in)
    return _picked(found.log_p, token_ids), found.entropy, found.p.square().sum(-1)


def gradients_of_rows(source, weight, bias, token_ids, scale, tanh_in, d_log_probs, d_entropy, need) -> tuple[Tensor | None, ...]:
    """Gradients of source, weight and bias where needed: dz_v = c (1[v = y] - p_v) - e p_v (log p_v + H)."""
    found = _softmax(source, weight, bias, token_ids, scale, tanh_in)
    d_z, used = 0, torch.zeros_like(token_ids, dtype=torch.bool)
    if d_log_probs is not None:
        columns = torch.arange(found.p.shape[-1], device=found.p.device)
        # 1 - p by expm1 of the log-prob: 1 - p itself has no digits left where p is near 1.
        pull = torch.where(columns == token_ids.unsqueeze(-1), -torch.expm1(found.log_p), -found.p)
        outside = (token_ids < 0) | (token_ids > columns.shape[0] - 1)  # a log-prob of NaN has a gradient of NaN
        pull = torch.where(outside.unsqueeze(-1), torch.nan, pull)
        d_z, used = d_log_probs.unsqueeze(-1) * pull, d_log_probs != 0
    if d_entropy is not None:
        d_z, used = d_z - d_entropy.unsqueeze(-1) * found.p * found.spread, used | (d_entropy != 0)
    d_x = d_z * found.slope
    # A row without gradient gives zeros whatever it holds. Only where it holds NaN: elsewhere the zeros have derivatives of their own.
    d_x = torch.where(used.unsqueeze(-1) | torch.isfinite(d_x), d_x, 0)
    if weight is None:
        return d_x.to(source.dtype), None, None
    return d_x @ weight if need[0] else None, d_x.t() @ source if need[1] else None, d_x.sum(0) if need[2] else None


def tangents_of_rows(source, weight, bias, token_ids, scale, tanh_in, d_source, d_weight, d_bias) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of (log_probs, entropy, squared) from those of source, weight and bias, None where there is none."""
    found = _softmax(source, weight, bias, token_ids, scale, tanh_in)
    parts = []
    if d_source is not None:
        parts.append(d_source.to(scale.dtype) if weight is None else d_source @ weight.t())
    if d_weight is not None:
        parts.append(source @ d_weight.t())
    if d_bias is not None:
        parts.append(d_bias.expand_as(found.p))
    d_z = torch.where(found.p == 0, 0, sum(parts) * found.slope)  # what is impossible stays so
    log_probs = _picked(d_z, token_ids) - (found.p * d_z).sum(-1)
    return log_probs, -(found.p * found.spread * d_z).sum(-1), torch.zeros_like(log_probs)


def _picked(values: Tensor, token_ids: Tensor) -> Tensor:
    """values[row, token_ids[row]]; NaN where there is no such column."""
    last = values.shape[-1] - 1
    known = (token_ids >= 0) & (token_ids <= last)
    return torch.where(known, values.gather(-1, token_ids.clamp(0, last).unsqueeze(-1)).squeeze(-1), torch.nan)
