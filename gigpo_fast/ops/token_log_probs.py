"""`token_log_probs` and `linear_token_log_probs` as custom ops: any upstream gradient, logits never saved twice."""

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..transforms import transformed
from .formula import gradients_of_blocks
from .gemm import logits_buffer
from .guard import no_double_backward, no_forward_mode, no_transforms
from .passes import HeadTensors, ScoredRows, chunks_of, recompute_backward, score, split
from .rows import rows_for
from .shards import Shards

_Found = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("gigpo_fast::token_log_probs", mutates_args=())
def token_log_probs(logits: Tensor, token_ids: Tensor, scale: Tensor, tanh_in: float) -> _Found:
    """(log_probs (n,), entropy (n,), lse (n, 2), sum of squared probabilities (n,)) of logits (n, V); the last two carry no gradient."""
    no_forward_mode("token_log_probs")
    log_probs, lse, entropy, squared = rows_for(logits.device).rows_forward(_unit_stride(logits), token_ids, scale, tanh_in)
    return log_probs, entropy, lse, squared


@token_log_probs.register_fake
def _(logits, token_ids, scale, tanh_in):
    no_forward_mode("token_log_probs")
    return _empty_rows(scale, logits.shape[0])


@torch.library.custom_op("gigpo_fast::token_log_probs_backward", mutates_args=())
def _logits_backward(
    d_log_probs: Tensor, d_entropy: Tensor, logits: Tensor, token_ids: Tensor, scale: Tensor, tanh_in: float, entropy: Tensor, lse: Tensor
) -> Tensor:
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    rows_for(logits.device).rows_backward(
        _unit_stride(logits), token_ids, scale, tanh_in, lse, entropy, d_log_probs.contiguous(), d_entropy.contiguous(), out
    )
    return out


@_logits_backward.register_fake
def _(d_log_probs, d_entropy, logits, token_ids, scale, tanh_in, entropy, lse):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


no_double_backward(_logits_backward, "token_log_probs")


def _setup_logits(ctx, inputs, output):
    logits, token_ids, scale, ctx.tanh_in = inputs
    _, entropy, lse, squared = output
    ctx.mark_non_differentiable(lse, squared)
    ctx.save_for_backward(logits, token_ids, scale, entropy, lse)


def _backward_logits(ctx, d_log_probs, d_entropy, *_):
    logits, token_ids, scale, entropy, lse = ctx.saved_tensors
    d_log_probs = _nan_outside(d_log_probs, token_ids, logits.shape[1])
    if transformed():
        need = [True, False, False]
        found = gradients_of_blocks(logits, None, None, token_ids, scale, ctx.tanh_in, d_log_probs, d_entropy, need)
        return found[0], None, None, None
    d_logits = torch.ops.gigpo_fast.token_log_probs_backward(
        d_log_probs, d_entropy, logits, token_ids, scale, ctx.tanh_in, entropy.detach(), lse
    )
    return d_logits, None, None, None


token_log_probs.register_autograd(_backward_logits, setup_context=_setup_logits)
no_transforms(token_log_probs, "token_log_probs")


@torch.library.custom_op("gigpo_fast::linear_token_log_probs", mutates_args=())
def linear_token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    scale: Tensor,
    tanh_in: float,
    budget: int,
    invariant: bool,
    group_name: str,
    columns: list[int],
) -> _Found:
    """As `token_log_probs`, of hidden (n, H) x head; logits live for one chunk only."""
    no_forward_mode("linear_token_log_probs")
    shards = Shards(group_name, columns)
    head, most = chunks_of("linear_token_log_probs", HeadTensors(weight, bias, tanh_in, shards=shards), budget, invariant)
    token_ids = token_ids - shards.first_column
    n = hidden.shape[0]
    log_probs, entropy, lse, squared = _empty_rows(scale, n)
    with torch.autocast(hidden.device.type, enabled=False):
        buffer = logits_buffer(max(min(most, n), head.fixed_rows), weight)
        for start, stop in split(0, n, most):
            _, *found = score(hidden[start:stop], token_ids[start:stop], scale[start:stop], head, buffer, squares=True)
            log_probs[start:stop], lse[start:stop], entropy[start:stop], squared[start:stop] = found
    return log_probs, entropy, lse, squared


@linear_token_log_probs.register_fake
def _(hidden, weight, bias, token_ids, scale, tanh_in, budget, invariant, group_name, columns):
    no_forward_mode("linear_token_log_probs")
    return _empty_rows(scale, hidden.shape[0])


@torch.library.custom_op("gigpo_fast::linear_token_log_probs_backward", mutates_args=())
def _linear_backward(
    d_log_probs: Tensor,
    d_entropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    scale: Tensor,
    tanh_in: float,
    entropy: Tensor,
    lse: Tensor,
    need: list[bool],
    budget: int,
    invariant: bool,
    group_name: str,
    columns: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_hidden, d_weight, d_bias); logits are recomputed, rows whose upstream gradients are both 0 are left out on a CPU."""
    shards = Shards(group_name, columns)
    rows = ScoredRows(hidden, token_ids - shards.first_column, scale, lse, entropy, d_log_probs.contiguous(), d_entropy.contiguous())
    places = None
    if hidden.device.type == "cpu":
        wanted = (d_log_probs != 0) | (d_entropy != 0)
        if not bool(wanted.all()):
            places = wanted.nonzero().squeeze(1)
            rows = ScoredRows(*(tensor.index_select(0, places) for tensor in rows))
    d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if need[1] else None
    d_bias = torch.zeros_like(bias, dtype=compute_dtype(bias.dtype)) if need[2] else None
    with torch.autocast(hidden.device.type, enabled=False):
        head, _ = chunks_of("linear_token_log_probs", HeadTensors(weight, bias, tanh_in, shards=shards), budget, invariant)
        found = shards.sum(recompute_backward(rows, head, budget, need, d_weight=d_weight, d_bias=d_bias))
    empty = hidden.new_empty(0)
    d_hidden = empty
    if need[0]:
        d_hidden = found.to(hidden.dtype) if places is None else torch.zeros_like(hidden).index_copy_(0, places, found.to(hidden.dtype))
    return d_hidden, empty.clone() if d_weight is None else d_weight, hidden.new_empty(0) if d_bias is None else d_bias.to(bias.dtype)


@_linear_backward.register_fake
def _(d_log_probs, d_entropy, hidden, weight, bias, token_ids, scale, tanh_in, entropy, lse, need, budget, invariant, group_name, columns):
    like = lambda value, needed: torch.empty_like(value, memory_format=torch.contiguous_format) if needed else hidden.new_empty(0)  # noqa: E731
    return like(hidden, need[0]), like(weight, need[1]), like(bias, need[2])


no_double_backward(_linear_backward, "linear_token_log_probs")


def _setup_linear(ctx, inputs, output):
    hidden, weight, bias, token_ids, scale, ctx.tanh_in, *ctx.how = inputs
    _, entropy, lse, squared = output
    ctx.mark_non_differentiable(lse, squared)
    ctx.save_for_backward(hidden, weight, bias, token_ids, scale, entropy, lse)


def _backward_linear(ctx, d_log_probs, d_entropy, *_):
    hidden, weight, bias, token_ids, scale, entropy, lse = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    budget, _, group_name, columns = ctx.how
    d_log_probs = _nan_outside(d_log_probs, token_ids, sum(columns) if group_name else weight.shape[0])
    if transformed():
        if group_name:
            raise RuntimeError(
                "linear_token_log_probs: the backward of a vocabulary-parallel head must run outside of torch.func and forward mode, "
                f"got one inside, of group {group_name}; call backward() there without is_grads_batched"
            )
        rows = hidden, weight, bias, token_ids, scale
        return *gradients_of_blocks(*rows, ctx.tanh_in, d_log_probs, d_entropy, need, budget), *(None,) * 7
    found = torch.ops.gigpo_fast.linear_token_log_probs_backward(
        d_log_probs, d_entropy, hidden, weight, bias, token_ids, scale, ctx.tanh_in, entropy.detach(), lse, need, *ctx.how
    )
    return *(gradient if needed else None for gradient, needed in zip(found, need)), *(None,) * 7


linear_token_log_probs.register_autograd(_backward_linear, setup_context=_setup_linear)
no_transforms(linear_token_log_probs, "linear_token_log_probs")


def _nan_outside(d_log_probs: Tensor, token_ids: Tensor, vocabulary: int) -> Tensor:
    """NaN where a log-prob is NaN because its token is none, so that no finite gradient hides it; 0 stays 0, as at masked tokens."""
    outside = (token_ids < 0) | (token_ids >= vocabulary)
    return torch.where(outside & (d_log_probs != 0), torch.nan, d_log_probs)


def _empty_rows(scale: Tensor, n: int) -> _Found:
    return scale.new_empty(n), scale.new_empty(n), scale.new_empty((n, 2)), scale.new_empty(n)


def _unit_stride(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] <= 1 else logits.contiguous()
