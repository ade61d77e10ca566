"""Log-probs, entropies and sums of squared probabilities as the softmax defines them.

Plain torch, differentiable by autograd, in the dtype it is given.
"""

import torch
from torch import Tensor


def token_log_probs(
    logits: Tensor,  # (..., V)
    token_ids: Tensor,  # (...)
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(log_probs, entropy), each (...): log p_y and -sum_v p_v log p_v, where p = softmax(z) and 0 log 0 = 0.

    z is the logits times logit_scale, then softcap * tanh(z / softcap), then divided by the temperature; columns from
    vocab_size on are removed.
    """
    log_p = _log_softmax(logits, temperature, logit_scale, softcap, vocab_size)
    possible = log_p > float("-inf")
    surprise = torch.where(possible, log_p, 0.0)
    entropy = -(surprise.exp() * possible * surprise).sum(-1)
    return log_p.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1), entropy


def sum_squared_probs(
    logits: Tensor,  # (..., V)
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """(...): sum_v p_v^2 of the same p as in `token_log_probs`."""
    return _log_softmax(logits, temperature, logit_scale, softcap, vocab_size).exp().pow(2).sum(-1)


def _log_softmax(logits: Tensor, temperature: float | Tensor, logit_scale: float, softcap: float | None, vocab_size: int | None) -> Tensor:
    z = logits * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / (temperature.to(z.dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)
    if vocab_size is not None:
        z = z[..., :vocab_size]
    # Subtracting the maximum changes nothing in exact arithmetic; it is a constant, so that no gradient goes through it.
    shifted = z - z.detach().amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def linear_token_log_probs(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    token_ids: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`token_log_probs` of the logits hidden @ weight.T + bias."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    return token_log_probs(logits, token_ids, temperature=temperature, logit_scale=logit_scale, softcap=softcap, vocab_size=vocab_size)
