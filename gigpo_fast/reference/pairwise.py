"""Preference losses as their papers write them: one comparison at a time, in float64."""

import math

import torch
from torch import Tensor

Spec = tuple[str, dict]  # the name of a link or transform, and its options


def sequence_log_probs(
    log_probs: Tensor,
    mask: Tensor,
    *,
    sequence_ids: Tensor | None = None,
    sequences: int | None = None,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(S,) sums over the trained tokens of each sequence, and how many there are."""
    rows = torch.arange(mask.shape[0], device="cpu")[:, None].expand(mask.shape) if sequence_ids is None else sequence_ids
    count = mask.shape[0] if sequence_ids is None else sequences
    totals, lengths = [torch.zeros((), dtype=torch.float64, device="cpu") for _ in range(count)], [0.0] * count
    for value, trained, row, weight in zip(
        log_probs.reshape(-1),
        mask.reshape(-1).tolist(),
        rows.reshape(-1).tolist(),
        [1.0] * mask.numel() if token_weights is None else token_weights.double().reshape(-1).tolist(),
    ):
        if trained:
            totals[row] = totals[row] + weight * value.double()
            lengths[row] += 1
    return torch.stack(totals), torch.tensor(lengths, dtype=torch.float64, device="cpu")


def pairwise_loss(
    log_probs: Tensor,
    pairs: Tensor,
    *,
    link: Spec,
    score: dict,
    beta: float,
    rejected: float = 1.0,
    margin: float = 0.0,
    nll: dict | None = None,
    chosen_down: Spec | None = None,
    given: dict[str, Tensor],
    denominator: float | None = None,
) -> Tensor:
    """Sum over pairs of weight (link(beta (s_w - rejected s_l) - margin) + NLL + chosen_down(-beta s_w)), divided by the denominator or
    the number of pairs."""
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for at, (chosen, other) in enumerate(pairs.tolist()):
        weight = _at(given, "weights", at, 1.0)
        if weight == 0:
            continue
        s = [_score(log_probs, row, score, given) for row in (chosen, other)]
        h = beta * (s[0] - rejected * s[1]) - margin
        loss = LINKS[link[0]](h, _at(given, "targets", at, None), **link[1])
        if nll is not None:
            own = [_nll(log_probs, row, nll, given) for row in (chosen, other)]
            loss = loss + nll["coefficient"] * ((own[0] + own[1]) / 2 if nll["both"] else own[0])
        if chosen_down is not None:
            loss = loss + LINKS[chosen_down[0]](-beta * s[0], None, **chosen_down[1])
        total = total + weight * loss
    return total / (denominator or max(pairs.shape[0], 1))


def response_loss(
    log_probs: Tensor,
    desirable: Tensor,
    *,
    link: Spec,
    score: dict,
    beta: float,
    margin: float = 0.0,
    nll: dict | None = None,
    reference_point: float = 0.0,
    given: dict[str, Tensor],
    denominator: float | None = None,
) -> Tensor:
    """The same for single responses: h = beta s - reference_point if desirable, and its negative if not."""
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for row, good in enumerate(desirable.tolist()):
        weight = _at(given, "weights", row, 1.0)
        if weight == 0:
            continue
        ahead = beta * _score(log_probs, row, score, given) - reference_point
        loss = LINKS[link[0]]((ahead if good else -ahead) - margin, _at(given, "targets", row, None), **link[1])
        if nll is not None and good:
            loss = loss + nll["coefficient"] * _nll(log_probs, row, nll, given)
        total = total + weight * loss
    return total / (denominator or max(desirable.shape[0], 1))


def _at(given: dict, name: str, place: int, default):
    return default if given.get(name) is None else float(given[name][place])


def _score(log_probs: Tensor, row: int, score: dict, given: dict) -> Tensor:
    d = log_probs[row].double()
    if score["reference"]:
        d = d - score["reference"] * _at(given, "ref_log_probs", row, None)
    if score["previous"]:
        d = d - score["previous"] * _at(given, "previous_log_probs", row, None)
    if score["per_token"]:
        d = d / max(_at(given, "lengths", row, None), 1.0)
    return d if score["transform"] is None else TRANSFORMS[score["transform"][0]](d, **score["transform"][1])


def _nll(log_probs: Tensor, row: int, nll: dict, given: dict) -> Tensor:
    value = -log_probs[row].double()
    return value / max(_at(given, "lengths", row, None), 1.0) if nll["per_token"] else value


def _log_sigmoid(h: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-h)) if float(h.detach()) > 0 else h - torch.log(1 + torch.exp(h))


def _p(h: Tensor) -> Tensor:
    return torch.exp(_log_sigmoid(h))


def _label_kl(h, t, smoothing):
    p, q = _p(h), _p(-h)
    return p * (torch.log(p) - math.log(1 - smoothing)) + q * (torch.log(q) - math.log(smoothing))


def _mix(h, t, temperature):
    m = _p(h / temperature)
    return -(1 - m) * _log_sigmoid(h) + m * torch.exp(-h)


def _pair_clip(h, t, epsilon):
    clipped = h if abs(float(h.detach())) <= epsilon else torch.full_like(h, math.copysign(epsilon, float(h.detach())))
    one, other = t * h, t * clipped
    return -(one if float(one.detach()) <= float(other.detach()) else other) / 2


LINKS = {
    "Logistic": lambda h, t, smoothing: -(1 - smoothing) * _log_sigmoid(h) - smoothing * _log_sigmoid(-h),
    "SoftLabel": lambda h, t: -t * _log_sigmoid(h) - (1 - t) * _log_sigmoid(-h),
    "Robust": lambda h, t, flip_rate: -((1 - flip_rate) * _log_sigmoid(h) - flip_rate * _log_sigmoid(-h)) / (1 - 2 * flip_rate),
    "Square": lambda h, t, target, scale: scale * (h - (t if target is None else target)) ** 2,
    "Hinge": lambda h, t, margin: margin - h if float(h.detach()) < margin else h * 0,
    "Sigmoid": lambda h, t: 1 - _p(h),
    "Linear": lambda h, t: -h,
    "LabelKL": _label_kl,
    "LogisticSigmoidMix": _mix,
    "PairClip": _pair_clip,
}
TRANSFORMS = {
    "ForwardKL": lambda d: -1 / torch.exp(d),
    "ReverseKL": lambda d: d + 1,
    "JensenShannon": lambda d: torch.log(2 * torch.exp(d) / (1 + torch.exp(d))),
    "AlphaDivergence": lambda d, alpha: (1 - torch.exp(d) ** -alpha) / alpha,
    "TotalVariation": lambda d: torch.full_like(d, int(torch.sign(d.detach()))) / 2,
    "ChiSquare": lambda d: 1 - torch.exp(d) ** -2,
    "ReverseChiSquare": lambda d: 2 * (torch.exp(d) - 1),
    "LogOdds": lambda d: torch.log(torch.exp(d) / (1 - torch.exp(d))),
}
