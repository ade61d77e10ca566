"""Log-probs and entropies of sampled tokens, from logits or straight from hidden states and the head."""

from torch import Tensor

from . import checks
from .head import Head, check_vocab_size, ready_head, row_scale, token_ids_checked
from .ops import passes
from .ops import token_log_probs as ops
from .types import TokenLogProbs

__all__ = ["Head", "TokenLogProbs", "linear_token_log_probs", "token_log_probs"]


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
    that dtype, nats; the gradient in the dtype of the logits. A token id out of range raises under full validation, else
    its log-prob is NaN. Raises on unequal leading shapes, temperature <= 0, and on a backward through the backward.
    """
    function = "token_log_probs"
    checks.tensor(function, "logits", logits, dtypes=checks.FLOATS, fix="pass the model's logits")
    if logits.dim() < 2:
        checks.fail(function, "logits", "(..., V) with at least one leading dimension", logits, "add one with logits[None]")
    leading = tuple(logits.shape[:-1])
    if vocab_size is not None:
        check_vocab_size(function, "vocab_size", vocab_size, logits.shape[-1])
        logits = logits[..., :vocab_size]
    flat_ids = token_ids_checked(function, token_ids, leading, logits.device, logits.shape[-1], None)
    scale, tanh_in = row_scale(function, temperature, logit_scale, softcap, leading, logits)
    log_probs, entropy, _ = ops.token_log_probs(logits.reshape(-1, logits.shape[-1]), flat_ids, scale, tanh_in)
    return TokenLogProbs(log_probs.view(leading), entropy.view(leading))


def linear_token_log_probs(
    hidden: Tensor,  # (..., H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (...) int64 or int32
    *,
    temperature: float | Tensor = 1.0,  # or (...) one number a token
    chunk_bytes: int | None = None,
) -> TokenLogProbs:
    """`token_log_probs` of hidden @ weight.T without holding the N x V logits, for any upstream gradient.

        logits = (hidden @ weight.T + bias).float()
        token_log_probs(logits, token_ids, temperature=temperature, logit_scale=..., softcap=..., vocab_size=...)

    8NVH operations: logits are recomputed in the backward from the saved log-sum-exp, vocabulary outermost; tokens whose
    upstream gradients are both exactly 0 cost no backward on a CPU. Low-precision operands are multiplied into fp32
    logits, which are never rounded; d_hidden sums in fp32 over the vocabulary; each entry of d_weight is rounded once.
    Peak memory beside results: chunk_bytes (default 256 MiB on a CPU; on a GPU 1 GiB or what 4096 rows need) plus
    N x H x 4 bytes while d_hidden is summed. Errors as in `token_log_probs`, and for a head that is sharded, quantised or of another dtype.
    """
    function = "linear_token_log_probs"
    if not isinstance(token_ids, Tensor):
        checks.tensor(function, "token_ids", token_ids)
    leading = tuple(token_ids.shape)
    ready = ready_head(function, hidden, head, temperature, leading)
    flat_ids = token_ids_checked(function, token_ids, leading, hidden.device, ready.weight.shape[0], None)
    budget = passes.default_budget(ready.weight) if chunk_bytes is None else chunk_bytes
    log_probs, entropy, _ = ops.linear_token_log_probs(ready.hidden, ready.weight, ready.bias, flat_ids, ready.scale, ready.tanh_in, budget)
    return TokenLogProbs(log_probs.view(leading), entropy.view(leading))
