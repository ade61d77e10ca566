"""The divergence estimators between two log-probs of one token, and the penalties made of them."""

import math

import torch
from torch import Tensor

from .ratios import bounded_log_ratio
from .tokens import Spec, Tokens, bounded, pair, value
from .weightings import weights

ANCHORS = {"teacher": "teacher_log_probs", "previous": "previous_log_probs", "rollout": "rollout_log_probs"}


def estimate(spec: Spec, lp: Tensor, ref: Tensor) -> Tensor:
    """k(lp, ref), differentiable in both."""
    name, options = spec
    x = lp - ref
    if name in ("K1", "K2", "K3") and options["input_clip"] is not None:
        x = bounded(x, -options["input_clip"], options["input_clip"])
    p, q = torch.exp(lp), torch.exp(ref)
    match name:
        case "K1":
            return x
        case "K2":
            return x * x / 2
        case "K3":
            k = torch.exp(-x) - 1 + x
            clip = options["output_clip"]
            return k if clip is None else bounded(k, -clip, clip)
        case "AbsoluteKL":
            return x if value(x) > 0 else -x if value(x) < 0 else x * 0
        case "StraightThrough":
            base = estimate(options["estimator"], lp, ref).detach()
            return base + x * x / 2 - (x * x / 2).detach()
        case "Detached":
            return estimate(options["estimator"], lp, ref).detach()
        case "Reversed":
            return estimate(options["estimator"], ref, lp)
        case "ProbabilityDifference":
            return p - q
        case "TotalVariation":
            return p - q if value(p) > value(q) else q - p
        case "BinaryKL":
            if max(value(lp), value(ref)) > 1e-4:
                return p * math.nan
            rest_p, rest_q = bounded(1 - p, 1e-8, None), bounded(1 - q, 1e-8, None)
            return p * torch.log(p / q) + rest_p * torch.log(rest_p / rest_q)
    raise KeyError(name)


def penalty(spec: Spec, b: Tokens, usable: Tokens, log_ratio: dict[int, Tensor], kl_mask: list | None) -> dict[int, tuple[Tensor, Tensor]]:
    """For each trained token the penalty, and the bare estimate. `usable` has 0 for log-probs that are infinite."""
    name, options = spec
    bare = {}
    for t in b.trained:
        if options["anchor"] == "old":
            lp, other = usable.lp[t], usable.old[t]
        else:
            lp = b.lp[t]
            other = b.ref[t] if options["anchor"] == "ref" else b.extras[ANCHORS[options["anchor"]]][t]
        bare[t] = estimate(options["estimator"], lp, torch.as_tensor(other, dtype=lp.dtype, device=lp.device))
        if options.get("own_mask") and not kl_mask[t]:
            bare[t] = lp * 0
    if name == "HingeKL":
        mean = options["mean"]
        if mean is None:
            mean = math.fsum(value(k) for k in bare.values()) / max(len(bare), 1)
        slope = max(options["coefficient"] * (mean - options["threshold"]), 0.0)
        return {t: (slope * k, k) for t, k in bare.items()}
    factor = {t: 1.0 for t in b.trained} if options["weighting"] is None else weights(options["weighting"], usable)
    found = {}
    for t, k in bare.items():
        weighted = k
        if options["importance_weighted"] is True:
            weighted = torch.exp(log_ratio[t]) * k
        elif options["importance_weighted"]:
            weighted = torch.exp(bounded_log_ratio(options["importance_weighted"], usable, t)) * k
        found[t] = options["coefficient"] * factor[t] * bounded(weighted, *pair(options["clip"])), k
    return found
