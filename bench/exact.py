"""The float64 answer of every problem, a chunk of tokens at a time, and the rule by which an answer is right."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.shapes import CLIP, Batch, Rows, Scored

Answer = dict[str, Tensor]  # "value", and "d_..." for every leaf
CHUNK_ELEMENTS = 1 << 26  # logits of a chunk, 512 MiB

# Largest error against float64, of a value and of a gradient, as a share of the largest entry. The float32 rule is that of
# torch against torch in another order; low precision rounds logits to 8 bits (eager) and gradients once.
BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 5e-2), "float16": (1e-2, 5e-2)}


def policy(batch: Batch) -> Answer:
    """The clipped loss, mean over trained tokens, and its gradients."""
    mask = batch.mask
    old, advantages, count = batch.old_log_probs[mask].double(), batch.advantages[mask].double(), int(mask.sum())

    def losses(log_probs: Tensor, part: slice) -> Tensor:
        ratio = (log_probs - old[part]).exp()
        return -torch.minimum(advantages[part] * ratio, advantages[part] * ratio.clamp(1 - CLIP, 1 + CLIP)) / count

    found = _linear(batch.hidden.detach()[mask], batch.weight, batch.token_ids[mask], losses)
    d_hidden = torch.zeros(batch.hidden.shape, dtype=torch.float64, device=mask.device)
    d_hidden[mask] = found["d_hidden"]
    return {**found, "value": found["value"].sum(), "d_hidden": d_hidden}


def likelihood(batch: Scored) -> Answer:
    """The mean negative log-likelihood of the tokens and its gradients."""
    found = _linear(batch.hidden, batch.weight, batch.token_ids, lambda log_probs, _: -log_probs / batch.token_ids.shape[0])
    return {**found, "value": found["value"].sum()}


def scores(batch: Scored) -> Answer:
    """The log-probs, and the gradients of their sum weighed by `upstream`."""
    upstream = batch.upstream.double()
    found = _linear(batch.hidden, batch.weight, batch.token_ids, lambda log_probs, part: log_probs * upstream[part])
    return {**found, "value": found.pop("log_probs")}


def rows(batch: Rows) -> Answer:
    """`scores` from logits."""
    log_probs, d_logits = [], torch.empty(batch.logits.shape, dtype=torch.float64, device=batch.logits.device)
    for part in _parts(*batch.logits.shape):
        log_p, chosen = _log_softmax(batch.logits.detach()[part].to(torch.float64, copy=True), batch.token_ids[part])
        _d_logits(log_p, batch.token_ids[part], batch.upstream[part].double(), out=d_logits[part])
        log_probs.append(chosen)
    return {"value": torch.cat(log_probs), "d_logits": d_logits}


def errors(found: Answer, wanted: Answer, dtype: str) -> dict[str, float]:
    """The largest error of each part as a share of its largest entry; raises AssertionError where one is above its bound."""
    value_bound, gradient_bound = BOUNDS[dtype]
    result, wrong = {}, []
    for name, value in found.items():
        result[name] = _relative(value, wanted[name])
        bound = gradient_bound if name.startswith("d_") else value_bound
        if not result[name] <= bound:  # NaN is wrong too
            wrong.append(f"{name} errs by {result[name]:.2g} of its largest entry, the bound is {bound:.0e}")
    assert not wrong, "wrong answer, so its time does not count: " + "; ".join(wrong)
    return result


def _linear(hidden: Tensor, weight: Tensor, token_ids: Tensor, losses: Callable[[Tensor, slice], Tensor]) -> Answer:
    """value (n,): losses(log_probs, part) of the tokens; log_probs; and the gradients of the sum of the losses."""
    hidden, head = hidden.detach(), weight.detach().double()
    d_weight = torch.zeros_like(head) if weight.requires_grad else None
    value, log_probs, d_hidden = [], [], []
    for part in _parts(hidden.shape[0], head.shape[0]):
        rows = hidden[part].double()
        log_p, chosen = _log_softmax(rows @ head.T, token_ids[part])
        leaf = chosen.requires_grad_()
        terms = losses(leaf, part)
        (coefficients,) = torch.autograd.grad(terms.sum(), leaf)
        d_logits = _d_logits(log_p, token_ids[part], coefficients, out=log_p)
        d_hidden.append(d_logits @ head)
        if d_weight is not None:
            d_weight.addmm_(d_logits.T, rows)
        value.append(terms.detach())
        log_probs.append(leaf.detach())
    found = {"value": torch.cat(value), "log_probs": torch.cat(log_probs), "d_hidden": torch.cat(d_hidden)}
    return found if d_weight is None else {**found, "d_weight": d_weight}


def _parts(tokens: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _log_softmax(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.sub_(logits.logsumexp(1, keepdim=True))
    return log_p, log_p.gather(1, token_ids[:, None])[:, 0]


def _d_logits(log_p: Tensor, token_ids: Tensor, coefficients: Tensor, *, out: Tensor) -> Tensor:
    torch.exp(log_p, out=out)
    out.mul_(-coefficients[:, None])
    return out.scatter_add_(1, token_ids[:, None], coefficients[:, None])


def _relative(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("nan")
    pairs = zip(found.detach().reshape(-1).split(CHUNK_ELEMENTS), wanted.reshape(-1).split(CHUNK_ELEMENTS))
    return float(torch.stack([(ours.double() - theirs).abs().max() for ours, theirs in pairs]).max() / wanted.abs().max())
