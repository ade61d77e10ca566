"""The policy loss as its papers write it: one token at a time, with `if` where the formula has a case, differentiable by autograd.

    L = sum_t w_t [ s(rho_t, A_t) + beta k(logp_t, ref_t) - eta H_t ] / D

Untrained tokens are never looked at. A bound that is reached makes the value a constant, so its gradient is 0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import penalty
from .ratios import bounded_log_ratio, log_ratio
from .surrogates import surrogate_losses
from .tokens import Spec, Tokens, bounded, value
from .weightings import weights as weighting_factors

_RATIOS = {"token": "TokenRatio", "none": "NoRatio", "sequence": "SequenceRatio", "sequence_stop_gradient": "SequenceRatio"}
_ESTIMATORS = {"k1": "K1", "k2": "K2", "k3": "K3", "abs": "AbsoluteKL"}


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
    extras: dict[str, Tensor] | None = None,  # what further blocks read
    sequence_ids: Tensor | None = None,  # default: the row
    ratio: str | Spec = "token",  # token, sequence, sequence_stop_gradient, none, or a Spec
    log_ratio_clip: float | tuple[float, float] | None = 20.0,
    surrogate: str | Spec = "clip",  # clip, reinforce, or a Spec
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
    penalties: tuple[Spec, ...] = (),  # instead of the kl_... above
    entropy_coefficient: float = 0.0,
    entropy_term: Spec | None = None,  # instead of entropy_coefficient
    weighting: Spec | None = None,  # of the whole term, instead of weights
    aggregation: str = "token_mean",  # or token_sum, or sequence_mean_ with token_sum, token_mean, token_sum_norm
    length: float | None = None,  # of sequence_mean_token_sum_norm
    denominator: float | None = None,  # D; default: what the aggregation counts here
    sequence_lengths: list[float] | None = None,  # trained tokens of each whole sequence, if this call sees only parts
) -> PolicyLoss:
    """The loss with every block described by plain arguments, or by its name and settings (a Spec)."""
    ratio = _ratio(ratio, log_ratio_clip)
    options = {"low": clip_low, "high": clip_high, "dual": dual, "ceiling": ceiling}
    named = {"clip": ("Clip", options), "reinforce": ("Reinforce", {})}
    surrogate = named[surrogate] if isinstance(surrogate, str) else surrogate
    if kl is not None:
        estimator = (_ESTIMATORS[kl], {"input_clip": kl_input_clip if kl == "k3" else None, "output_clip": kl_output_clip})
        estimator = ("StraightThrough", {"estimator": estimator}) if kl_straight_through else estimator
        own = {"own_mask": kl_mask is not None, "anchor": "ref", "weighting": None, "aggregation": None, "denominator": None, "clip": None}
        plain = {"coefficient": kl_coefficient, "estimator": estimator, "importance_weighted": kl_importance_weighted}
        penalties = (("KLPenalty", plain | own),)
    if entropy_coefficient:
        entropy_term = ("EntropyBonus", {"coefficient": entropy_coefficient})
    extras = dict(extras or {})
    if weights is not None:
        extras["weights"], weighting = weights, ("TokenWeights", {})

    b = _tokens(log_probs, advantages, mask, old_log_probs, ref_log_probs, entropy, extras, sequence_ids, sequence_lengths)
    # An infinite log-prob says nothing about the policy: its token has no policy term and a log-ratio of 0.
    dropped = {t for t in b.trained if math.isinf(value(b.lp[t])) or math.isinf(b.old[t])}
    zero = log_probs.new_zeros(())
    usable = b._replace(
        lp=[zero if t in dropped else x for t, x in enumerate(b.lp)], old=[0.0 if t in dropped else x for t, x in enumerate(b.old)]
    )
    logs = {t: bounded_log_ratio(ratio, usable, t) for t in b.trained}
    losses = surrogate_losses(surrogate, usable, logs)
    masked = extras.get("kl_mask") if kl_mask is None else kl_mask
    divergences = [penalty(spec, b, usable, logs, None if masked is None else masked.flatten().tolist()) for spec in penalties]
    factor = {t: 1.0 for t in b.trained} if weighting is None else weighting_factors(weighting, usable)
    mean_entropy = math.fsum(value(b.H[t]) for t in b.trained) / max(len(b.trained), 1) if b.H is not None else 0.0

    D = float(denominator) if denominator is not None else _count(aggregation, b)
    terms, seen = [], []
    for t in b.trained:
        loss = zero if t in dropped else losses[t]
        apart = zero
        for (_, settings), found in zip(penalties, divergences):
            if settings["aggregation"] is None:
                loss = loss + found[t][0]
            else:
                apart = apart + found[t][0] * _own_share(settings, aggregation, length, b, t, D)
        if entropy_term is not None:
            loss = loss + _entropy(entropy_term, b.H[t], mean_entropy)
        terms.append(factor[t] * (loss * _share(aggregation, length, b, t) / D + apart))
        seen.append(_seen(b, usable, t, dropped, logs[t], ratio, surrogate, divergences[0][t][1] if divergences else None))

    # Ties the loss to the graph where every term is a constant, or where there is none.
    attached = (torch.where(mask & torch.isfinite(log_probs), log_probs, 0) * 0).sum()
    terms = torch.stack(terms) if terms else log_probs.new_zeros(0)
    return PolicyLoss(terms.sum() + attached, terms.detach(), _report(seen, value(terms.sum()) * D, D))


def _ratio(ratio: str | Spec, log_ratio_clip) -> Spec:
    if not isinstance(ratio, str):
        return ratio
    return _RATIOS[ratio], {"log_ratio_clip": log_ratio_clip, "stop_gradient_mean": ratio == "sequence_stop_gradient"}


def _tokens(log_probs, advantages, mask, old_log_probs, ref_log_probs, entropy, extras, sequence_ids, sequence_lengths) -> Tokens:
    trained = [index for index, wanted in enumerate(mask.flatten().tolist()) if wanted]
    if sequence_ids is not None:
        sequence = sequence_ids.flatten().tolist()
    else:
        columns = max(mask.shape[-1] if mask.dim() == 2 else 1, 1)
        sequence = [index // columns for index in range(mask.numel())]
    members: dict[int, list[int]] = {}
    for t in trained:
        members.setdefault(sequence[t], []).append(t)
    long = {s: len(of) if sequence_lengths is None else sequence_lengths[s] for s, of in members.items()}
    plain = lambda tensor: None if tensor is None else tensor.detach().flatten().tolist()  # noqa: E731
    old = plain(log_probs if old_log_probs is None else old_log_probs)
    H = None if entropy is None else list(entropy.flatten().unbind())
    given = {name: plain(tensor) for name, tensor in extras.items()}
    lp = list(log_probs.flatten().unbind())
    return Tokens(trained, lp, old, plain(ref_log_probs), plain(advantages), H, given, sequence, members, long)


def _share(aggregation: str, length: float | None, b: Tokens, t: int) -> float:
    """The aggregation's weight of a token."""
    if aggregation == "sequence_mean_token_mean":
        return 1 / b.long[b.sequence[t]]
    return 1 / length if aggregation == "sequence_mean_token_sum_norm" else 1.0


_NAMES = {
    "TokenMean": "token_mean",
    "TokenSum": "token_sum",
    "SequenceMeanTokenSum": "sequence_mean_token_sum",
    "SequenceMeanTokenMean": "sequence_mean_token_mean",
    "SequenceMeanTokenSumNorm": "sequence_mean_token_sum_norm",
}


def _own_share(settings: dict, aggregation: str, length: float | None, b: Tokens, t: int, D: float) -> float:
    """A token's weight by a penalty's own aggregation, over its own denominator, or the call's if both count the same."""
    name, options = settings["aggregation"]
    own, own_length = _NAMES[name], options.get("length")
    if settings["denominator"] is not None:
        divisor = settings["denominator"]
    elif own == aggregation or (own.startswith("sequence") and aggregation.startswith("sequence")):
        divisor = D
    elif own == "token_mean":
        divisor = max(math.fsum(b.long.values()), 1)
    else:
        divisor = _count(own, b)
    return _share(own, own_length, b, t) / divisor


def _count(aggregation: str, b: Tokens) -> float:
    counts = {"token_mean": len(b.trained), "token_sum": 1}
    return float(max(counts.get(aggregation, len(b.members)), 1))


def _entropy(spec: Spec, H: Tensor, mean: float) -> Tensor:
    name, options = spec
    if name == "EntropyBonus":
        return -options["coefficient"] * H
    mean = mean if options["mean"] is None else options["mean"]
    side = (mean > options["target"]) - (mean < options["target"])
    return options["coefficient"] * side * (H - options["target"])


def _seen(b, usable, t, dropped, log_rho, ratio, surrogate, estimate) -> dict[str, float]:
    """What the metrics count of one token."""
    while surrogate[0] in ("Weighted", "SurrogateSum"):
        surrogate = surrogate[1]["surrogate"] if surrogate[0] == "Weighted" else surrogate[1]["terms"][0]
    token_ratio = ratio[0] in ("TokenRatio", "RolloutRatio")
    found = {
        "nonfinite_tokens": float(t in dropped or not math.isfinite(value(b.lp[t]))),
        "approx_kl": -value(log_rho if token_ratio else usable.delta(t)),
        "ratio_clamped_fraction": float(value(log_ratio(ratio, usable, t)) != value(log_rho)),
        "ratio_max": float(torch.exp(log_rho.detach())),  # infinite where math.exp would raise
    }
    if estimate is not None:
        found["ref_kl"] = value(estimate)
    if b.H is not None:
        found["entropy"] = value(b.H[t])
    if surrogate[0] == "Clip":
        low, high, dual = (surrogate[1][name] for name in ("low", "high", "dual"))
        capped, A = value(bounded(torch.exp(log_rho), None, surrogate[1]["ceiling"])), b.A[t]
        found["clip_fraction_low"] = float(A < 0 and capped < 1 - low)
        found["clip_fraction_high"] = float(A > 0 and capped > 1 + high)
        found["dual_clip_fraction"] = float(dual is not None and A < 0 and max(capped, 1 - low) > dual)
    return found


def _report(seen: list[dict[str, float]], loss_sum: float, D: float) -> dict[str, float]:
    names = {"clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"}.union(*seen) - {"nonfinite_tokens", "ratio_max"}
    report = {name: math.fsum(token.get(name, 0.0) for token in seen) / len(seen) for name in names if seen}
    report["nonfinite_tokens"] = sum(token["nonfinite_tokens"] for token in seen)
    report["ratio_max"] = max((token["ratio_max"] for token in seen), default=0.0)
    return report | {"loss_sum": loss_sum, "n_active": float(len(seen)), "denominator": D}
