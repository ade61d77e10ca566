"""The surrogate blocks as their papers write them: the loss of one token."""

import math

import torch
from torch import Tensor

from .divergences import estimate
from .tokens import Spec, Tokens, bounded, exp, value
from .weightings import weights


def surrogate_losses(spec: Spec, b: Tokens, log_ratio: dict[int, Tensor]) -> dict[int, Tensor]:
    """The loss of every trained token."""
    name, options = spec
    if name == "Weighted":
        factor = weights(options["weighting"], b)
        losses = surrogate_losses(options["surrogate"], b, log_ratio)
        return {t: losses[t] * factor[t] if factor[t] != 0 else b.lp[t] * 0 for t in b.trained}
    if name == "SurrogateSum":
        terms = [surrogate_losses(term, b, log_ratio) for term in options["terms"]]
        return {t: sum(c * term[t] for c, term in zip(options["coefficients"], terms)) for t in b.trained}
    return {t: globals()[f"_{name}"](b, t, log_ratio, **options) for t in b.trained}


def _Clip(b, t, log_ratio, low, high, dual, ceiling):
    rho = torch.exp(log_ratio[t])
    return clipped(rho, bounded(rho, None, ceiling), b.A[t], low, high, dual)


def _TokenClip(b, t, log_ratio, dual):
    rho = torch.exp(log_ratio[t])
    return clipped(rho, rho, b.A[t], b.extras["clip_low"][t], b.extras["clip_high"][t], dual)


def clipped(rho: Tensor, capped: Tensor, A: float, low: float, high: float, dual: float | None) -> Tensor:
    """max(-capped A, -clip(rho) A), and at most -dual A where A < 0."""
    loss, other = -A * capped, -A * bounded(rho, 1 - low, 1 + high)
    if value(other) > value(loss):
        loss = other
    if dual is not None and A < 0 and value(loss) > -dual * A:
        loss = torch.full_like(rho, -dual * A)
    return loss


def _Unclipped(b, t, log_ratio):
    return -b.A[t] * torch.exp(log_ratio[t])


def _NoSurrogate(b, t, log_ratio):
    return b.lp[t] * 0


def _Reinforce(b, t, log_ratio):
    return -b.A[t] * b.lp[t]


def _CISPO(b, t, log_ratio, low, high, unified_mask):
    rho = float(torch.exp(log_ratio[t].detach()))
    weight = min(max(rho, -math.inf if low is None else 1 - low), 1 + high)
    out = rho > 1 + high if b.A[t] > 0 else b.A[t] < 0 and low is not None and rho < 1 - low
    return -(0.0 if unified_mask and out else weight) * b.A[t] * b.lp[t]


def _CISPOAbsolute(b, t, log_ratio, maximum):
    return -min(float(torch.exp(log_ratio[t].detach())), maximum) * b.A[t] * b.lp[t]


def _SAPO(b, t, log_ratio, tau_positive, tau_negative):
    tau = tau_positive if b.A[t] > 0 else tau_negative
    rho = torch.exp(bounded(log_ratio[t], None, 80.0))  # the gate is 1 long before
    return -4 / tau / (1 + torch.exp(-tau * (rho - 1))) * b.A[t]


def _VESPO(b, t, log_ratio, k_positive, lambda_positive, k_negative, lambda_negative):
    k, rate = (k_positive, lambda_positive) if b.A[t] >= 0 else (k_negative, lambda_negative)
    w = float(torch.exp(log_ratio[t].detach()))
    return -(w**k) * exp(rate * (1 - w)) * b.A[t] * b.lp[t]


def _GMPO(b, t, log_ratio, low, high):
    kept = []
    for other in b.inside(t):
        x, A = log_ratio[other], b.A[other]
        kept.append(bounded(x, None, high) if A > 0 else bounded(x, -low, None) if A < 0 else x * 0)
    return -b.A[t] * torch.exp(torch.stack(kept).sum() / b.long[b.sequence[t]])


def _dppo(b, t, log_ratio, gone, maximum, score_function):
    if gone:
        return b.lp[t] * 0
    rho = bounded(torch.exp(log_ratio[t]), None, maximum)
    return -b.A[t] * (rho.detach() * b.lp[t] if score_function else rho)


def _DPPOTV(b, t, log_ratio, low, high, maximum, score_function):
    moved = exp(value(b.lp[t])) - exp(b.old[t])
    return _dppo(b, t, log_ratio, moved > high if b.A[t] > 0 else moved < -low, maximum, score_function)


def _DPPOKL(b, t, log_ratio, low, high, maximum, score_function):
    new, old = b.lp[t].detach(), torch.as_tensor(b.old[t], dtype=b.lp[t].dtype, device=b.lp[t].device)
    near = value(estimate(("BinaryKL", {}), old, new))
    rose = value(new) > value(old)
    gone = rose and not near <= high if b.A[t] > 0 else value(new) < value(old) and not near <= low
    return _dppo(b, t, log_ratio, gone, maximum, score_function)


def _DRO(b, t, log_ratio, beta):
    return -b.A[t] * b.lp[t] + beta / 2 * log_ratio[t] ** 2


def _Kimi15(b, t, log_ratio, tau):
    return -b.A[t] * b.lp[t] + tau / 2 * log_ratio[t] ** 2


def _NFT(b, t, log_ratio, negative_weight, floor_positive, floor_negative, normalize):
    p = min(max(b.extras["correct_rate"][t], 0.02), 0.98)
    rho = torch.exp(log_ratio[t])
    weight = {0: 1.0, 1: 1 - p, 2: math.sqrt((1 - p) / p)}[normalize]
    if b.extras["correct"][t] > 0:
        return -weight * torch.log(_floored(rho, floor_positive))
    return -weight * negative_weight * torch.log(_floored((1 - p * rho) / (1 - p), floor_negative))


def _floored(x: Tensor, floor: float) -> Tensor:
    """max(x, floor), with the gradient of x."""
    return x + max(floor - value(x), 0.0)


def _TOPR(b, t, log_ratio, positive_weight, negative_weight, low, high, split_on_scores):
    if (b.extras["scores"][t] if split_on_scores else b.A[t]) > 0:
        return -positive_weight * b.A[t] * b.lp[t]
    return -negative_weight * min(max(float(torch.exp(log_ratio[t].detach())), low), high) * b.A[t] * b.lp[t]


def _NegativeLogLikelihood(b, t, log_ratio):
    return -b.lp[t]


def _AdvantageWeightedNLL(b, t, log_ratio, temperature, maximum):
    weight = exp(b.A[t] / temperature)
    return -(weight if maximum is None else min(weight, maximum)) * b.lp[t]


def _GroupContrast(b, t, log_ratio, temperature, ratio_score):
    scores: dict[int, Tensor] = {}  # of each answer (sequence) of the group
    right: dict[int, bool] = {}
    for other in b.together(t, "group_ids"):
        answer = b.sequence[other]
        number = torch.exp(log_ratio[other]) if ratio_score else b.lp[other]
        scores[answer] = scores.get(answer, 0.0) + number / b.long[answer]
        right[answer] = b.extras["correct"][other] > 0
    rights, wrongs = [s for s in scores if right[s]], [s for s in scores if not right[s]]
    if not rights or not wrongs:
        return b.lp[t] * 0
    own = b.sequence[t]
    if right[own]:
        return -scores[own] / len(rights)
    if temperature is None:
        return scores[own] / len(wrongs)
    wrong = torch.stack([scores[s] for s in wrongs])
    return temperature * (torch.logsumexp(wrong / temperature, 0) - math.log(len(wrongs))) / len(wrongs)


def _RewardLabels(b, t, log_ratio, tau):
    scores: dict[int, Tensor] = {}  # of each answer (sequence) of the group
    good: dict[int, bool] = {}
    for other in b.together(t, "group_ids"):
        answer = b.sequence[other]
        scores[answer] = scores.get(answer, 0.0) + b.delta(other) / b.long[answer]
        good[answer] = b.extras["correct"][other] > 0
    if len(set(good.values())) < 2:
        return b.lp[t] * 0
    rights = sum(torch.exp(-scores[answer] / tau) for answer in scores if good[answer])
    wrongs = sum(torch.exp(scores[answer] / tau) for answer in scores if not good[answer])
    return (torch.log(1 + rights) + torch.log(1 + wrongs)) / len(scores)
