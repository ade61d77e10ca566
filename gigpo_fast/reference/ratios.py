"""The ratio blocks, one token at a time: the logarithm of each token's ratio before its bounds."""

import torch
from torch import Tensor

from .tokens import Spec, Tokens, bounded, pair


def log_ratio(spec: Spec, b: Tokens, t: int) -> Tensor:
    """The log-ratio of token t before the bounds."""
    name, options = spec
    match name:
        case "NoRatio":
            return b.lp[t] - b.lp[t].detach()
        case "TokenRatio":
            return b.delta(t)
        case "RolloutRatio":
            return b.lp[t] - b.extras["rollout_log_probs"][t]
        case "SegmentRatio":
            segment = b.together(t, "segment_ids")
            return torch.stack([b.delta(other) for other in segment]).sum() / len(segment)
        case "SequenceProductRatio":
            clip = options["token_clip"]
            return torch.stack([bounded(b.delta(other), None if clip is None else -clip, clip) for other in b.inside(t)]).sum()
        case "AveragedRatio":
            mean = torch.stack([b.delta(other) for other in b.inside(t)]).sum() / b.long[b.sequence[t]]
            both = torch.exp(b.delta(t)), torch.exp(mean)
            return torch.log(torch.sqrt(both[0] * both[1]) if options["geometric"] else (both[0] + both[1]) / 2)
        case "SequenceRatio":
            mean = torch.stack([b.delta(other) for other in b.inside(t)]).sum() / b.long[b.sequence[t]]
            return mean.detach() + b.delta(t) - b.delta(t).detach() if options["stop_gradient_mean"] else mean
    raise KeyError(name)


def bounded_log_ratio(spec: Spec, b: Tokens, t: int) -> Tensor:
    """The log-ratio of token t, constant outside its bounds."""
    return bounded(log_ratio(spec, b, t), *pair(spec[1]["log_ratio_clip"]))
