"""`linear_policy_loss` as a custom op: one node under torch.compile, gradients formed in its forward."""

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..metrics import SIZE
from ..objective.batch import Sequences, TokenBatch
from ..objective.differentiate import objective_from
from ..transforms import legacy_batched, transformed
from . import fused_loss
from .guard import no_double_backward, no_forward_mode, no_transforms
from .passes import HeadTensors, held_dtype
from .scaling import scale_, scaled
from .shards import Shards


@torch.library.custom_op("gigpo_fast::linear_policy_loss", mutates_args=())
def linear_policy_loss(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    token_ids: Tensor,  # (N,) int64
    mask: Tensor,  # (N,) bool
    rows: Tensor | None,  # (n,) int64, from a plan
    n_backward: int,
    boundaries: Tensor | None,  # on the CPU, from a plan
    scale: Tensor,  # (N,) compute dtype: logit_scale / temperature, or softcap / temperature
    tanh_in: float,
    advantages: Tensor,  # (N,) compute dtype, like all of the following
    old_log_probs: Tensor | None,
    ref_log_probs: Tensor | None,
    token_weights: Tensor,
    sequence_ids: Tensor | None,  # (N,) int64
    sequence_lengths: Tensor | None,  # (bound,)
    extras: list[Tensor],  # in the order of objective.reads
    denominator: Tensor,
    structure: str,
    numbers: Tensor,  # on the CPU
    need: list[bool],  # gradient of hidden, weight, bias
    budget: int,
    invariant: bool,
    weight_grad_out: Tensor | None,  # (V, H) compute dtype: where the backward adds d_weight, instead of returning it
    group_name: str,  # of a vocabulary-parallel head, whose columns these are; "" for a whole head
    columns: list[int],  # how many each rank has
    sequence_group: str,  # of ranks over which sequences are cut, or ""
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, metrics, d_hidden, d_weight, d_bias) for an upstream gradient of 1; a gradient not needed is empty."""
    no_forward_mode("linear_policy_loss")
    names = objective_from(structure, tuple(numbers.tolist())).reads
    sequences = None if sequence_ids is None else Sequences(sequence_ids, sequence_lengths, sequence_group)
    tokens = TokenBatch(
        advantages, None, advantages, old_log_probs, ref_log_probs, token_weights, sequences, dict(zip(names, extras)), None
    )
    with torch.autocast(hidden.device.type, enabled=False):
        fused = fused_loss.run(
            hidden,
            HeadTensors(weight, bias, tanh_in, shards=Shards(group_name, columns)),
            token_ids,
            mask,
            rows,
            n_backward,
            boundaries,
            scale,
            tokens,
            denominator,
            structure,
            numbers,
            need,
            budget,
            invariant,
        )
    held = held_dtype(hidden)
    d_weight = fused.d_weight().to(_held_d_weight(weight, weight_grad_out)) if need[1] else None
    d_hidden = fused.d_hidden.to(held) if need[0] else None
    d_bias = fused.d_bias().to(held_dtype(bias)) if need[2] else None
    empty = lambda value: hidden.new_empty(0, dtype=held) if value is None else value  # noqa: E731
    return fused.loss.clone(), fused.metrics[0].clone(), empty(d_hidden), empty(d_weight), empty(d_bias)


@linear_policy_loss.register_fake
def _(
    hidden,
    weight,
    bias,
    token_ids,
    mask,
    rows,
    n_backward,
    boundaries,
    scale,
    tanh_in,
    advantages,
    old_log_probs,
    ref_log_probs,
    token_weights,
    sequence_ids,
    sequence_lengths,
    extras,
    denominator,
    structure,
    numbers,
    need,
    budget,
    invariant,
    weight_grad_out,
    group_name,
    columns,
    sequence_group,
):
    no_forward_mode("linear_policy_loss")

    def gradient(like: Tensor | None, needed: bool, dtype: torch.dtype | None = None) -> Tensor:
        if not needed:
            return hidden.new_empty(0, dtype=held_dtype(hidden))
        return torch.empty_like(like, dtype=dtype or held_dtype(like), memory_format=torch.contiguous_format)

    loss = hidden.new_empty((), dtype=compute_dtype(hidden.dtype))
    metrics = hidden.new_empty(SIZE, dtype=torch.float32)
    d_weight = gradient(weight, need[1], _held_d_weight(weight, weight_grad_out))
    return loss, metrics, gradient(hidden, need[0]), d_weight, gradient(bias, need[2])


def _held_d_weight(weight: Tensor, weight_grad_out: Tensor | None) -> torch.dtype:
    return held_dtype(weight) if weight_grad_out is None else compute_dtype(weight.dtype)


@torch.library.custom_op("gigpo_fast::linear_policy_loss_backward", mutates_args=())
def _backward_op(
    d_loss: Tensor, d_hidden: Tensor, d_weight: Tensor, d_bias: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The held gradients times the upstream scalar, in the dtype of what they are gradients of."""
    times = lambda gradient, like: scaled(gradient, d_loss).to(gradient.dtype if like is None else like.dtype)  # noqa: E731
    return times(d_hidden, hidden), times(d_weight, weight), times(d_bias, bias)


@_backward_op.register_fake
def _(d_loss, d_hidden, d_weight, d_bias, hidden, weight, bias):
    return (
        torch.empty_like(d_hidden, dtype=hidden.dtype),
        torch.empty_like(d_weight, dtype=weight.dtype),
        torch.empty_like(d_bias, dtype=d_bias.dtype if bias is None else bias.dtype),
    )


no_double_backward(_backward_op, "linear_policy_loss")


def _last_use(d_loss: Tensor, held: Tensor) -> bool:
    """True if this backward is eager and frees the graph: then the held gradients are scaled in place and handed over, not copied."""
    if torch.is_grad_enabled() or type(d_loss) is not Tensor or type(held) is not Tensor or torch.compiler.is_compiling():
        return False
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps_graph is not None and not keeps_graph()


def _setup(ctx, inputs, output):
    ctx.extras, ctx.need, ctx.weight_grad_out = len(inputs[16]), inputs[20], inputs[23]
    ctx.set_materialize_grads(False)  # no zeros the size of the weight for outputs that have no gradient
    _, metrics, d_hidden, d_weight, d_bias = output
    ctx.mark_non_differentiable(metrics, d_hidden, d_weight, d_bias)
    # hidden, weight and bias only tie the gradients to the graph, so that a second backward is refused instead of silently 0.
    ctx.save_for_backward(d_hidden, d_weight, d_bias, *inputs[:3])


def _backward(ctx, d_loss, *_):
    saved = ctx.saved_tensors
    need = ctx.need
    # An upstream gradient that is batched (is_grads_batched) or has a tangent; but not one to be differentiated again.
    plain = (transformed() or legacy_batched(d_loss)) and not torch.is_grad_enabled()
    if need[1] and ctx.weight_grad_out is not None:
        if plain:
            raise RuntimeError(
                "linear_policy_loss: weight_grad_out must be None for a backward under torch.func or forward mode, got a buffer; "
                "call backward() outside of them"
            )
        with torch.no_grad():
            ctx.weight_grad_out.addcmul_(saved[1], d_loss)
        need = [need[0], False, need[2]]
        saved = (saved[0], saved[1].new_empty(0), *saved[2:])
    if plain:
        found = [(gradient.to(d_loss.dtype) * d_loss).to(like.dtype) if needed else None
                 for gradient, like, needed in zip(saved[:3], saved[3:], need)]  # fmt: skip
    elif _last_use(d_loss, saved[0]):
        found = [scale_(gradient, d_loss).to(like.dtype) if needed else None for gradient, like, needed in zip(saved[:3], saved[3:], need)]
    else:
        found = torch.ops.gigpo_fast.linear_policy_loss_backward(d_loss, *saved)
    gradients = [gradient if needed else None for gradient, needed in zip(found, need)]
    return *gradients, *(None,) * 13, [None] * ctx.extras, *(None,) * 10


linear_policy_loss.register_autograd(_backward, setup_context=_setup)
no_transforms(linear_policy_loss, "linear_policy_loss")
