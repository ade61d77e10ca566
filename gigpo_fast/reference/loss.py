"""The policy loss as its papers write it: one token at a time, with `if` where the formula has a case, differentiable by autograd.

    L = sum_t w_t [ s(rho_t, A_t) + beta k(logp_t, ref_t) - eta H_t ] / D

Untrained tokens are never looked at. A bound that is reached makes the value a constant, so its gradient is 0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """The loss, its parts, and what is reported of it."""

    loss: Tensor  # 0-dim
    terms: Tensor  # (n,) what each trained token adds to the loss
    metrics: dict[str, float]


def policy_loss(
    log_probs: Tensor,  # any shape; all tensors have it
    advantages: Tensor,
    mask: Tensor,  # bool
    *,
    old_log_probs: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
    entropy: Tensor | None = None,
    weights: Tensor | None = None,
    kl_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,  # default: the row
    ratio: str = "token",  # token, sequence, sequence_stop_gradient, none
    log_ratio_clip: float | tuple[float, float] | None = 20.0,
    surrogate: str = "clip",  # clip, reinforce
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float | None = None,
    ceiling: float | None = None,
    kl: str | None = None,  # k1, k2, k3, abs
    kl_coefficient: float = 0.0,
    kl_input_clip: float | None = None,
    kl_output_clip: float | None = None,
    kl_straight_through: bool = False,
    kl_importance_weighted: bool = False,
    entropy_coefficient: float = 0.0,
    aggregation: str = "token_mean",  # or token_sum, or sequence_mean_ with token_sum, token_mean, token_sum_norm
    length: float | None = None,  # of sequence_mean_token_sum_norm
    denominator: float | None = None,  # D; default: what the aggregation counts here
    sequence_lengths: list[float] | None = None,  # trained tokens of each whole sequence, if this call sees only parts
) -> PolicyLoss:
    """The loss with every block described by plain arguments."""
    tokens = [index for index, trained in enumerate(mask.flatten().tolist()) if trained]
    sequence_of = _sequences(mask, sequence_ids)
    members: dict[int, list[int]] = {}
    for t in tokens:
        members.setdefault(sequence_of[t], []).append(t)
    long = {s: len(of) if sequence_lengths is None else sequence_lengths[s] for s, of in members.items()}

    new, A = log_probs.flatten().unbind(), advantages.flatten().tolist()
    old = [value.detach() for value in new] if old_log_probs is None else old_log_probs.detach().flatten().unbind()
    ref = None if ref_log_probs is None else ref_log_probs.detach().flatten().unbind()
    H = None if entropy is None else entropy.flatten().unbind()
    # An infinite log-prob says nothing about the policy: its token has no policy term and a log-ratio of 0.
    dropped = {t for t in tokens if math.isinf(_value(new[t])) or math.isinf(_value(old[t]))}
    delta = {t: new[t].new_zeros(()) if t in dropped else new[t] - old[t] for t in tokens}

    terms, seen = [], []
    for t in tokens:
        inside = members[sequence_of[t]]
        unclamped = _log_ratio(ratio, t, delta, inside, long[sequence_of[t]])
        log_ratio = _bounded(unclamped, *_pair(log_ratio_clip))
        rho = torch.exp(log_ratio)
        capped = rho if ceiling is None else _bounded(rho, -math.inf, ceiling)
        if t in dropped:
            loss = new[t].new_zeros(())
        elif surrogate == "reinforce":
            loss = -A[t] * new[t]
        else:
            loss = _clip(capped, A[t], clip_low, clip_high, dual)
        estimate = None
        if kl is not None:
            estimate = _divergence(kl, new[t] - ref[t], kl_input_clip, kl_output_clip, kl_straight_through)
            if kl_mask is not None and not bool(kl_mask.flatten()[t]):
                estimate = new[t].new_zeros(())
            loss = loss + kl_coefficient * (rho * estimate if kl_importance_weighted else estimate)
        if entropy_coefficient:
            loss = loss - entropy_coefficient * H[t]
        if weights is not None:
            loss = loss * float(weights.flatten()[t])
        if aggregation == "sequence_mean_token_mean":
            loss = loss / long[sequence_of[t]]
        elif aggregation == "sequence_mean_token_sum_norm":
            loss = loss / length
        terms.append(loss)
        clips = surrogate == "clip"
        seen.append({
            "nonfinite_tokens": float(t in dropped or not math.isfinite(_value(new[t]))),
            "clip_fraction_low": float(clips and A[t] < 0 and _value(capped) < 1 - clip_low),
            "clip_fraction_high": float(clips and A[t] > 0 and _value(capped) > 1 + clip_high),
            "dual_clip_fraction": float(clips and dual is not None and A[t] < 0 and max(_value(capped), 1 - clip_low) > dual),
            "approx_kl": -_value(log_ratio if ratio == "token" else delta[t]),
            "ratio_clamped_fraction": float(_value(unclamped) != _value(log_ratio)),
            "ref_kl": 0.0 if estimate is None else _value(estimate),
            "entropy": 0.0 if H is None else _value(H[t]),
            "ratio_max": _value(rho),
        })  # fmt: skip

    D = float(denominator) if denominator is not None else _count(aggregation, len(tokens), len(members))
    # Ties the loss to the graph where every term is a constant, or where there is none.
    attached = (torch.where(mask & torch.isfinite(log_probs), log_probs, 0) * 0).sum()
    terms = torch.stack(terms) / D if terms else log_probs.new_zeros(0)
    return PolicyLoss(terms.sum() + attached, terms.detach(), _report(seen, _value(terms.sum()) * D, D))


def _log_ratio(kind: str, t: int, delta: dict[int, Tensor], inside: list[int], long: float) -> Tensor:
    if kind == "none":
        return delta[t] - delta[t].detach()
    if kind == "token":
        return delta[t]
    mean = torch.stack([delta[other] for other in inside]).sum() / long
    return mean if kind == "sequence" else mean.detach() + delta[t] - delta[t].detach()


def _clip(rho: Tensor, A: float, low: float, high: float, dual: float | None) -> Tensor:
    """max(-rho A, -clip(rho) A), and at most -dual A where A < 0."""
    loss = -A * rho
    if A > 0 and _value(rho) > 1 + high:
        loss = torch.full_like(rho, -A * (1 + high))
    if A < 0 and _value(rho) < 1 - low:
        loss = torch.full_like(rho, -A * (1 - low))
    if dual is not None and A < 0 and _value(loss) > -dual * A:
        loss = torch.full_like(rho, -dual * A)
    return loss


def _divergence(kind: str, x: Tensor, input_clip: float | None, output_clip: float | None, straight_through: bool) -> Tensor:
    if kind == "k1":
        value = x
    elif kind == "abs":
        value = x if _value(x) >= 0 else -x
    elif kind == "k2":
        value = x * x / 2
    else:
        x_in = x if input_clip is None else _bounded(x, -input_clip, input_clip)
        value = torch.exp(-x_in) - 1 + x_in
        if output_clip is not None:
            value = _bounded(value, -output_clip, output_clip)
    if not straight_through:
        return value
    k2 = x * x / 2  # the value of one estimator, the gradient of k2
    return value.detach() + k2 - k2.detach()


def _bounded(x: Tensor, low: float, high: float) -> Tensor:
    """x, or the bound as a constant. NaN is not hidden."""
    if _value(x) < low:
        return torch.full_like(x, low)
    return torch.full_like(x, high) if _value(x) > high else x


def _value(x: Tensor) -> float:
    return float(x.detach())


def _pair(bound: float | tuple[float, float] | None) -> tuple[float, float]:
    if bound is None:
        return -math.inf, math.inf
    return bound if isinstance(bound, tuple) else (-bound, bound)


def _sequences(mask: Tensor, sequence_ids: Tensor | None) -> list[int]:
    if sequence_ids is not None:
        return sequence_ids.flatten().tolist()
    columns = mask.shape[-1] if mask.dim() == 2 else 1
    return [index // max(columns, 1) for index in range(mask.numel())]


def _count(aggregation: str, tokens: int, sequences: int) -> float:
    counts = {"token_mean": tokens, "token_sum": 1}
    return float(max(counts.get(aggregation, sequences), 1))


def _report(seen: list[dict[str, float]], loss_sum: float, D: float) -> dict[str, float]:
    names = ("clip_fraction_low", "clip_fraction_high", "dual_clip_fraction", "approx_kl", "ratio_clamped_fraction", "ref_kl", "entropy")
    report = {name: math.fsum(token[name] for token in seen) / max(len(seen), 1) for name in names}
    report["nonfinite_tokens"] = sum(token["nonfinite_tokens"] for token in seen)
    report["ratio_max"] = max((token["ratio_max"] for token in seen), default=0.0)
    return report | {"loss_sum": loss_sum, "n_active": float(len(seen)), "denominator": D}
