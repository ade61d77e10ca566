"""The weighting blocks, from their formulas: for each trained token a plain number."""

import math

from .tokens import Spec, Tokens, exp, mean, value


def weights(spec: Spec, b: Tokens) -> dict[int, float]:
    """The factor of every trained token."""
    name, options = spec
    return globals()[f"_{name}"](b, **options)


def _TokenWeights(b):
    return {t: b.extras["weights"][t] for t in b.trained}


def _Product(b, factors):
    parts = [weights(part, b) for part in factors]
    return {t: math.prod(part[t] for part in parts) for t in b.trained}


def _Normalized(b, weighting, mean):
    found = weights(weighting, b)
    average = math.fsum(found.values()) / max(len(found), 1) if mean is None else mean
    return {t: factor / average if average > 0 else 0.0 for t, factor in found.items()}


def _pooled(level: Spec, b: Tokens, numbers: dict[int, float]) -> dict[int, float]:
    """A number a token, over the token, its sequence or its segment."""
    match level[0]:
        case "TokenLevel":
            return numbers
        case "SequenceSum":
            return {t: math.fsum(numbers[other] for other in b.inside(t)) for t in b.trained}
        case "SequenceMean":
            return {t: math.fsum(numbers[other] for other in b.inside(t)) / b.long[b.sequence[t]] for t in b.trained}
        case "SequenceMax":
            return {t: max(numbers[other] for other in b.inside(t)) for t in b.trained}
        case "SegmentMean":
            return {t: mean([numbers[other] for other in b.together(t, "segment_ids")]) for t in b.trained}
    raise KeyError(level[0])


def _within(number: float, low: float | None, high: float | None) -> bool:
    return (low is None or number >= low) and (high is None or number <= high) and not math.isnan(number)


def _RolloutCorrection(b, level, low, high, truncate, current, log_ratio_clip):
    gap = {t: (value(b.lp[t]) if current else b.old[t]) - b.extras["rollout_log_probs"][t] for t in b.trained}
    pooled = _pooled(level, b, {t: 0.0 if math.isnan(number) else number for t, number in gap.items()})
    found = {}
    for t, number in pooled.items():
        bound = math.inf if log_ratio_clip is None else log_ratio_clip
        weight = exp(min(max(number, -bound), bound))
        if truncate:
            weight = min(max(weight, -math.inf if low is None else low), math.inf if high is None else high)
        found[t] = weight if _within(weight, low, high) else 0.0
    return found


def _Rejection(b, estimator, level, low, high, current):
    import torch

    from .divergences import estimate

    policy = {t: value(b.lp[t]) if current else b.old[t] for t in b.trained}
    rollout = b.extras["rollout_log_probs"]
    if estimator is None:
        pooled = {t: exp(number) for t, number in _pooled(level, b, {t: policy[t] - rollout[t] for t in b.trained}).items()}
    else:
        both = lambda t: (torch.tensor(x[t], dtype=torch.float64, device="cpu") for x in (policy, rollout))  # noqa: E731
        number = {t: value(estimate(estimator, *both(t))) for t in b.trained}
        pooled = _pooled(level, b, number)
    return {t: float(_within(number, low, high)) for t, number in pooled.items()}


def _OldProbability(b, threshold):
    return {t: float(exp(b.old[t]) < threshold) for t in b.trained}


def _MixedGroups(b, tolerance):
    return {t: float(b.extras["group_spread"][t] > tolerance) for t in b.trained}


def _PositiveScores(b):
    return {t: float(b.extras["scores"][t] > 0) for t in b.trained}


def uniform(key: int, seed: int) -> float:
    """splitmix64 of a key: 53 bits of it as a number in [0, 1)."""
    mask = 2**64 - 1
    state = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & mask
    z = (key * 0x9E3779B97F4A7C15 + state) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


def _RandomFraction(b, fraction, seed):
    return {t: float(uniform(int(b.extras["token_keys"][t]), seed) < fraction) for t in b.trained}


def _TopEntropy(b, fraction, exact_count, threshold):
    entropy = {t: value(b.H[t]) for t in b.trained}
    ordered = sorted(entropy.values())
    if exact_count:
        kept = sorted(b.trained, key=lambda t: -entropy[t])[: math.ceil(fraction * len(ordered) - 1e-9)]
        return {t: float(t in kept) for t in b.trained}
    if threshold is None and ordered:
        place = (1 - fraction) * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        threshold = ordered[below] + (place - below) * (ordered[above] - ordered[below])
    return {t: float(entropy[t] >= threshold) for t in b.trained}


def _covariances(b: Tokens, statistics: Spec | None) -> dict[int, float]:
    if statistics is None:
        A, lp = mean([b.A[t] for t in b.trained]), mean([value(b.lp[t]) for t in b.trained])
    else:
        A, lp = statistics[1]["mean_advantage"], statistics[1]["mean_log_prob"]
    return {t: (b.A[t] - A) * (value(b.lp[t]) - lp) for t in b.trained}


def _CovarianceTop(b, fraction, statistics):
    covariance = _covariances(b, statistics)
    if statistics is not None:
        return {t: float(number >= statistics[1]["cutoff"]) for t, number in covariance.items()}
    count = max(1, int(fraction * len(b.trained) + 1e-9)) if fraction > 0 else 0
    top = sorted(b.trained, key=lambda t: -covariance[t])[:count]
    return {t: float(t in top) for t in b.trained}


def _CovarianceBand(b, fraction, low, high, clip_low, clip_high, seed, statistics):
    covariance, candidates = _covariances(b, statistics), []
    for t in b.trained:
        ratio = exp(value(b.delta(t)))
        clipped = ratio > 1 + clip_high if b.A[t] > 0 else b.A[t] < 0 and ratio < 1 - clip_low
        if low < covariance[t] < high and not clipped:
            candidates.append(t)
    draw = {t: uniform(int(b.extras["token_keys"][t]), seed) for t in candidates}
    if statistics is not None:
        dropped = [t for t in candidates if draw[t] < statistics[1]["cutoff"]]
    else:
        dropped = sorted(candidates, key=lambda t: draw[t])[: max(1, int(fraction * len(b.trained) + 1e-9))]
    return {t: float(t not in dropped) for t in b.trained}


def _OffPolicySequenceMask(b, threshold, old):
    anchor = b.old if old else b.extras["rollout_log_probs"]
    drift = _pooled(("SequenceMean", {}), b, {t: anchor[t] - value(b.lp[t]) for t in b.trained})
    return {t: float(b.A[t] >= 0 or drift[t] <= threshold) for t in b.trained}


def _SecondMoment(b, threshold, old, cutoff):
    square = {t: (value(b.delta(t)) if old else b.old[t] - b.extras["rollout_log_probs"][t]) ** 2 for t in b.trained}
    if cutoff is not None:
        return {t: float(number < cutoff) for t, number in square.items()}
    left = sorted(b.trained, key=lambda t: square[t])
    while left and mean([square[t] for t in left]) > threshold:
        left.pop()
    return {t: float(t in left) for t in b.trained}


def _RatioGuard(b, threshold, log_ratio_clip, mean):
    if mean is None:
        ratios = [exp(min(max(value(b.delta(t)), -log_ratio_clip), log_ratio_clip)) for t in b.trained]
        mean = math.fsum(ratios) / max(len(ratios), 1)
    return {t: float(mean <= threshold) for t in b.trained}


def _ratios(b, level, log_ratio_clip):
    bound = math.inf if log_ratio_clip is None else log_ratio_clip
    pooled = _pooled(level, b, {t: value(b.delta(t)) for t in b.trained})
    return {t: exp(min(max(number, -bound), bound)) for t, number in pooled.items()}


def _RatioRegion(b, low, high, one_sided, outer_low, outer_high, level, log_ratio_clip):
    found = {}
    for t, ratio in _ratios(b, level, log_ratio_clip).items():
        A = b.A[t]
        below = ratio < 1 - low and (not one_sided or A < 0)
        above = ratio > 1 + high and (not one_sided or A > 0)
        back = outer_low is not None and A >= 0 and ratio <= 1 - outer_low
        back = back or (outer_high is not None and A <= 0 and ratio >= 1 + outer_high)
        found[t] = float(back or not (below or above))
    return found


def _RatioWeight(b, maximum, level, log_ratio_clip):
    bound = math.inf if maximum is None else maximum
    return {t: min(ratio, bound) for t, ratio in _ratios(b, level, log_ratio_clip).items()}


def _discriminators(b: Tokens) -> dict[int, float]:
    return {t: exp(value(b.lp[t])) * (value(b.H[t]) + value(b.lp[t])) for t in b.trained}


def _deviation(numbers: list[float]) -> float:
    middle = mean(numbers)
    return math.sqrt(mean([(number - middle) ** 2 for number in numbers]))


def _ClipB(b, mu, bound):
    found = _discriminators(b)
    numbers = list(found.values())
    bound = mean(numbers) - mu * _deviation(numbers) if bound is None else bound
    return {t: float(b.A[t] >= 0 or number >= bound) for t, number in found.items()}


def _ClipV(b, mu, max_fraction):
    x = {t: b.extras["expected_discriminator"][t] - number for t, number in _discriminators(b).items()}
    bound, n = mu * _deviation(list(x.values())), len(x)
    dropped = [t for t in b.trained if x[t] > bound and b.A[t] <= 0]
    bad, most = [t for t in dropped if b.A[t] < 0], max(int(max_fraction * n + 1e-9), 1)
    if len(dropped) > max_fraction * n and len(bad) > most:
        dropped = sorted(bad, key=lambda t: -x[t])[:most]
    return {t: float(t not in dropped) for t in b.trained}


def _FutureKL(b, half_life, clip, both_sides, safety, ratio_limit):
    place, found = b.extras["position_ids"], {}
    for t in b.trained:
        ratio, future = exp(value(b.delta(t))), 0.0
        for other in b.inside(t):
            counted = ratio_limit is None or exp(value(b.delta(other))) <= ratio_limit
            if place[other] >= place[t] and counted:
                future += 0.5 ** ((place[other] - place[t]) / half_life) * value(b.delta(other))
        weight = exp(future)
        if clip is not None:
            weight = min(max(weight, 1 - clip if both_sides else 1.0), 1 + clip)
        if safety is not None and b.A[t] < 0 and ratio > safety:
            weight = min(max(weight, 0.0 if clip is None else 1 - clip), 1.0)
        found[t] = weight
    return found


def _UncertainTokens(b):
    return {t: exp(value(b.lp[t])) * (1 - exp(value(b.lp[t]))) for t in b.trained}


def _AdvantageWeight(b, temperature, maximum):
    return {t: min(exp(b.A[t] / temperature), math.inf if maximum is None else maximum) for t in b.trained}
