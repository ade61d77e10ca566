"""The estimators of one number a token, as their papers write them: one pass backwards over each sequence, in float64.

Tokens are (B, T) with a sequence a row. Every function returns float64 tensors on the CPU, 0 at masked tokens.
"""

import math

import torch
from torch import Tensor


def token_returns(rewards, mask, *, gamma=1.0, carry=True) -> Tensor:
    """G_t = r_t + gamma G_{t+1}; a masked token is no time step (carry), or one with reward 0."""
    result = torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    for row in range(mask.shape[0]):
        running = 0.0
        for t in reversed(range(mask.shape[1])):
            if mask[row, t]:
                running = float(rewards[row, t]) + gamma * running
                result[row, t] = running
            elif not carry:
                running = gamma * running
    return result


def turn_returns(rewards, mask, *, gamma) -> Tensor:
    """The return of every run of trained tokens: the reward at its last token plus gamma times that of the next run."""
    result = torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    for row in range(mask.shape[0]):
        later, inside = 0.0, False
        for t in reversed(range(mask.shape[1])):
            if mask[row, t]:
                later = later if inside else float(rewards[row, t]) + gamma * later
                result[row, t] = later
            inside = bool(mask[row, t])
    return result


def gae_advantages(rewards, values, mask, *, gamma=1.0, lam=1.0, final_values=None, carry=True) -> tuple[Tensor, Tensor]:
    """A_t = delta_t + gamma lam A_{t+1} (GAE, Eq. 16), and A_t + V_t."""
    advantages, returns = (torch.zeros(mask.shape, dtype=torch.float64, device="cpu") for _ in range(2))
    for row in range(mask.shape[0]):
        running, first = 0.0, True
        following = 0.0
        for t in reversed(range(mask.shape[1])):
            own = float(lam[row, t]) if isinstance(lam, Tensor) else lam
            if mask[row, t]:
                if first and final_values is not None:
                    following = float(final_values[row])
                first = False
                value = float(values[row, t])
                running = float(rewards[row, t]) + gamma * following - value + gamma * own * running
                advantages[row, t], returns[row, t], following = running, running + value, value
            elif not carry:  # a time step of reward 0 and value 0
                running = gamma * following + gamma * own * running if not first else 0.0
                following = 0.0
    return advantages, returns


def whiten(values, mask, *, ddof=1, eps=1e-8, eps_in="variance", keep_mean=False, counted=None) -> Tensor:
    """(x - mean) / deviation over the trained tokens, or over the counted ones of them."""
    values = values.to(torch.float64)
    entering = mask & counted if counted is not None and (mask & counted).any() else mask
    chosen = [float(value) for value in values[entering]]
    result = torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    if not chosen:
        return result
    mean = chosen[0] if min(chosen) == max(chosen) else math.fsum(chosen) / len(chosen)
    variance = math.fsum((value - mean) ** 2 for value in chosen) / max(len(chosen) - ddof, 1)
    deviation = {
        "variance": math.sqrt(variance + eps),
        "deviation": math.sqrt(variance) + eps,
        "floor": math.sqrt(max(variance, eps)),
    }[eps_in]
    result[mask] = (values[mask] - mean) / deviation + (mean if keep_mean else 0.0)
    return result


def optimal_token_baseline_advantages(
    rewards, group, log_probs, sum_squared_probs, mask, *, importance_weights=None, count_trained_tokens=False, singleton="raw", eps=1e-8
) -> Tensor:
    """G_t - b_t with b_t the mean return of the group at this position, weighted by the gradient's size so far (OTB)."""
    returns, result = token_returns(rewards, mask), torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    at: dict = {}
    for row in range(mask.shape[0]):
        grown, trained = 0.0, 0
        for t in range(mask.shape[1]):
            if mask[row, t]:
                size = 1.0 - 2.0 * math.exp(float(log_probs[row, t])) + float(sum_squared_probs[row, t])
                grown += size * (1.0 if importance_weights is None else float(importance_weights[row, t]) ** 2)
                trained += 1
                at.setdefault((group[row], trained if count_trained_tokens else t), []).append((row, t, grown))
    for places in at.values():
        total = math.fsum(grown for *_, grown in places)
        baseline = math.fsum(grown * float(returns[row, t]) for row, t, grown in places) / (total + eps)
        for row, t, _ in places:
            alone = float(returns[row, t]) if singleton == "raw" else 0.0
            result[row, t] = float(returns[row, t]) - baseline if len(places) > 1 else alone
            if len(places) > 1 and len({float(returns[other, u]) for other, u, _ in places}) == 1:
                result[row, t] = 0.0
    return result


def segment_advantages(values, cuts, scores, mask, *, start_values=None, start_known=None) -> Tensor:
    """The value at the end of a token's segment minus that at its beginning (SPO)."""
    result = torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    for row in range(mask.shape[0]):
        trained = mask[row].nonzero().flatten().tolist()
        known = start_values is not None and (start_known is None or bool(start_known[row]))
        low, waiting = (float(start_values[row]) if known else None), []
        for t in trained:
            waiting.append(t)
            if cuts[row, t] or t == trained[-1]:
                high = float(scores[row]) if t == trained[-1] else float(values[row, t])
                for place in waiting:
                    result[row, place] = high - low if low is not None else 0.0
                low, waiting = high, []
    return result


def low_probability_cuts(log_probs, mask, *, threshold=0.9, every=5) -> tuple[Tensor, Tensor]:
    """Cut before every k-th token of low probability: after the trained token before it, or at the start."""
    after, start = torch.zeros(mask.shape, dtype=torch.bool, device="cpu"), torch.zeros(mask.shape[0], dtype=torch.bool, device="cpu")
    for row in range(mask.shape[0]):
        trained = mask[row].nonzero().flatten().tolist()
        low = [place for place, t in enumerate(trained) if math.exp(float(log_probs[row, t])) < threshold]
        for place in low[::every]:
            if place == 0:
                start[row] = True
            else:
                after[row, trained[place - 1]] = True
    return after, start
