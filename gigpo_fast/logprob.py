"""Log-probs, entropies and other statistics of sampled tokens, from logits or straight from hidden states and the head."""

import torch
from torch import Tensor

from . import checks
from .head import Head, check_vocab_size, ready_head, row_scale, token_ids_checked
from .inference import takes_inference_tensors
from .ops import formula, passes
from .ops import token_log_probs as ops
from .sharded_head import check_same_tokens
from .transforms import transformed
from .types import TokenLogProbs, TokenStatistics

__all__ = [
    "Head",
    "TokenLogProbs",
    "TokenStatistics",
    "linear_token_log_probs",
    "linear_token_statistics",
    "token_log_probs",
    "token_statistics",
]


@takes_inference_tensors
def token_log_probs(
    logits: Tensor,  # (..., V) float; rows may be strided views
    token_ids: Tensor,  # (...) int64 or int32, the leading shape of logits
    *,
    temperature: float | Tensor = 1.0,  # or (...) one number a token
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> TokenLogProbs:
    """Log-prob of each given token and the entropy of its distribution, both differentiable.

        z = logits * logit_scale;  z = softcap * tanh(z / softcap) if softcap else z;  z = z[..., :vocab_size] / temperature
        log_p = torch.log_softmax(z.float(), -1)
        log_p.gather(-1, token_ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)

    One read of the logits forward; one read and one write backward. Arithmetic in fp32 (fp64 for fp64 logits); results in
    that dtype, nats; the gradient in the dtype of the logits. A token id out of range raises where values are checked; elsewhere
    its log-prob is NaN, and so is the gradient that flows through it. `temperature` is a constant. Inside torch.func and forward mode
    (jvp, vmap, Hessian-vector products) the same in plain torch over blocks of rows. Raises on unequal leading shapes,
    temperature <= 0, and on a backward through the backward outside of
    torch.func.
    """
    log_probs, entropy, _ = _from_logits("token_log_probs", logits, token_ids, temperature, logit_scale, softcap, vocab_size)
    return TokenLogProbs(log_probs, entropy)


def token_statistics(
    logits: Tensor,  # (..., V) float; rows may be strided views
    token_ids: Tensor,  # (...) int64 or int32, the leading shape of logits
    *,
    temperature: float | Tensor = 1.0,  # or (...) one number a token
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> TokenStatistics:
    """`token_log_probs` and the sum of squared probabilities, from one read of the logits and without gradient.

        log_p = torch.log_softmax(z.float(), -1)                     # z as in token_log_probs
        log_p.gather(-1, token_ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1), log_p.exp().square().sum(-1)

    1 - 2 p + sum p^2 is the squared length of the gradient of log p with respect to the logits z: what a variance-optimal
    baseline weighs each token by (`sum_pi_squared` in verl's optimal_token_baseline). Errors and precision as in `token_log_probs`.
    """
    with torch.no_grad():
        found = _from_logits("token_statistics", logits, token_ids, temperature, logit_scale, softcap, vocab_size)
    return TokenStatistics(*(value.detach() for value in found))  # forward mode does not ask for no_grad


@takes_inference_tensors
def linear_token_log_probs(
    hidden: Tensor,  # (..., H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (...) int64 or int32
    *,
    temperature: float | Tensor = 1.0,  # or (...) one number a token
    chunk_bytes: int | None = None,
    invariant: bool = False,
) -> TokenLogProbs:
    """`token_log_probs` of hidden @ weight.T without holding the N x V logits, for any upstream gradient.

        logits = (hidden @ weight.T + bias).float()
        token_log_probs(logits, token_ids, temperature=temperature, logit_scale=..., softcap=..., vocab_size=...)

    8NVH operations: logits are recomputed in the backward from the saved log-sum-exp, vocabulary outermost; tokens whose
    upstream gradients are both exactly 0 cost no backward on a CPU. Low-precision operands are multiplied into fp32
    logits, which are never rounded; d_hidden sums in fp32 over the vocabulary; each entry of d_weight is rounded once.
    Peak memory beside results: chunk_bytes (default 256 MiB on a CPU; on a GPU 1 GiB or what 4096 rows need) plus
    N x H x 4 bytes while d_hidden is summed. `invariant`: as in loss.linear_policy_loss, so that the log-probs of one policy are the
    same bits in any batch. Forward mode is one more product, and never holds N x V logits either. Errors as in `token_log_probs`, and
    for a head that is sharded, quantised or of another dtype; inside torch.func for a vocabulary-parallel head and `invariant`.
    """
    log_probs, entropy, _ = _from_hidden("linear_token_log_probs", hidden, head, token_ids, temperature, chunk_bytes, invariant)
    return TokenLogProbs(log_probs, entropy)


def linear_token_statistics(
    hidden: Tensor,  # (..., H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (...) int64 or int32
    *,
    temperature: float | Tensor = 1.0,  # or (...) one number a token
    chunk_bytes: int | None = None,
    invariant: bool = False,
) -> TokenStatistics:
    """`token_statistics` of hidden @ weight.T without holding the N x V logits; without gradient, 2NVH operations.

        logits = (hidden @ weight.T + bias).float()
        token_statistics(logits, token_ids, temperature=temperature, logit_scale=..., softcap=..., vocab_size=...)

    Memory, precision and errors as in `linear_token_log_probs`.
    """
    with torch.no_grad():
        found = _from_hidden("linear_token_statistics", hidden, head, token_ids, temperature, chunk_bytes, invariant)
    return TokenStatistics(*(value.detach() for value in found))


def _from_logits(
    function: str,
    logits: Tensor,
    token_ids: Tensor,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    vocab_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log_probs, entropy, sum of squared probabilities) of checked arguments; the last has no gradient."""
    checks.tensor(function, "logits", logits, dtypes=checks.FLOATS, fix="pass the model's logits")
    if logits.dim() < 2:
        checks.fail(function, "logits", "(..., V) with at least one leading dimension", logits, "add one with logits[None]")
    leading = tuple(logits.shape[:-1])
    if vocab_size is not None:
        check_vocab_size(function, "vocab_size", vocab_size, logits.shape[-1])
        logits = logits[..., :vocab_size]
    flat_ids = token_ids_checked(function, token_ids, leading, logits.device, logits.shape[-1], None)
    scale, tanh_in = row_scale(function, temperature, logit_scale, softcap, leading, logits)
    flat = logits.reshape(-1, logits.shape[-1])
    if transformed():
        found = formula.rows_of_logits(flat, flat_ids, scale, tanh_in)
    else:
        log_probs, entropy, _, squared = ops.token_log_probs(flat, flat_ids, scale, tanh_in)
        found = log_probs, entropy, squared
    return tuple(value.reshape(leading) for value in found)


def _from_hidden(
    function: str,
    hidden: Tensor,
    head: Tensor | Head,
    token_ids: Tensor,
    temperature: float | Tensor,
    chunk_bytes: int | None,
    invariant: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_from_logits`, of hidden x head."""
    if not isinstance(token_ids, Tensor):
        checks.tensor(function, "token_ids", token_ids)
    leading = tuple(token_ids.shape)
    ready = ready_head(function, hidden, head, temperature, leading)
    flat_ids = token_ids_checked(function, token_ids, leading, hidden.device, ready.vocabulary, None)
    if ready.group_name:
        check_same_tokens(function, head.weight, ready.group_name, flat_ids)
    budget, invariant = passes.budget_of(function, chunk_bytes, ready.weight), checks.switch(function, "invariant", invariant)
    if transformed():
        head, how = passes.head_tensors(ready), {"budget": budget, "invariant": invariant}
        found = formula.rows_of_hidden(function, ready.hidden, head, flat_ids, ready.scale, **how)
        return tuple(value.reshape(leading) for value in found)
    log_probs, entropy, _, squared = ops.linear_token_log_probs(
        ready.hidden,
        ready.weight,
        ready.bias,
        flat_ids,
        ready.scale,
        ready.tanh_in,
        budget,
        invariant,
        ready.group_name,
        list(ready.columns),
    )
    return log_probs.view(leading), entropy.view(leading), squared.view(leading)
