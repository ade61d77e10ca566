"""Token layouts and the one recursion that all token-level estimators are: x_t = v_t + d_t x_{t+1} within a sequence.

Tokens of a (B, T) batch are used where they lie, a sequence a row. Packed tokens, or rows that sequence_ids join, are brought
together by one stable sort. The recursion runs backwards by doubling, all sequences at once: after the pass with stride s every
token holds the next 2s terms. A token whose d is 0 takes nothing from what follows, whatever is stored there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..values import all_finite


class Layout(NamedTuple):
    """Tokens in lines, each sequence in one piece, in time order."""

    mask: Tensor  # (R, C) bool
    last: Tensor  # (R, C) bool, nothing of the same sequence follows
    order: Tensor | None  # (N,) int64, which token stands at each place; None where they lie as they came
    shape: torch.Size  # of the tensors that came
    fault: Tensor | None = None  # 0-dim bool: labels that a check of values would have refused, so that results are NaN

    def lay(self, values: Tensor) -> Tensor:
        """(R, C) from the caller's shape."""
        return values if self.order is None else values.reshape(-1).index_select(0, self.order).unsqueeze(0)

    def back(self, values: Tensor) -> Tensor:
        """The caller's shape from (R, C)."""
        if self.order is None:
            return values
        return torch.empty_like(values[0]).scatter_(0, self.order, values[0]).view(self.shape).masked_fill(self.fault, float("nan"))

    def previous(self, values: Tensor, start: Tensor | float) -> Tensor:
        """(R, C) what stands one token earlier in the same sequence, `start` at the first."""
        moved = values.roll(1, dims=1)
        first = self.last.roll(1, dims=1)
        first[:, :1] = True
        return torch.where(first, start, moved)

    def following(self, values: Tensor) -> Tensor:
        """(R, C) what stands one token later in the same sequence, 0 at the last."""
        return torch.where(self.last, 0.0, values.roll(-1, dims=1))


def layout(function: str, mask: Tensor, sequence_ids: Tensor | None) -> Layout:
    """How the tokens of `mask` lie: (B, T) rows are sequences unless sequence_ids (any labels >= 0; -1 is padding) say otherwise."""
    checks.mask(function, mask)
    if mask.dim() not in (1, 2):
        checks.fail(function, "mask", "(B, T), or (N,) for packed tokens", mask, "one row a sequence, or all tokens in one line")
    if sequence_ids is None:
        if mask.dim() == 1:
            fix = "give every token, masked ones too, the label of its sequence (packing.sequence_ids_of makes them)"
            checks.fail(function, "sequence_ids", f"{tuple(mask.shape)} int64 for packed tokens", None, fix)
        last = torch.zeros_like(mask)
        last[:, -1:] = True
        return Layout(mask, last, None, mask.shape)
    fix = "give every token, masked ones too, the label of its sequence; tokens of a sequence stand in time order"
    checks.tensor(function, "sequence_ids", sequence_ids, shape=tuple(mask.shape), dtypes=checks.INTEGERS, device=mask.device, fix=fix)
    sequence = sequence_ids.to(torch.int64)
    fault = _check_labels(function, mask, sequence)
    sequence = sequence.reshape(-1)
    order = torch.argsort(sequence, stable=True)
    ordered = sequence[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return Layout(mask.reshape(-1)[order].unsqueeze(0), last.unsqueeze(0), order, mask.shape, fault)


def _check_labels(function: str, mask: Tensor, labels: Tensor) -> Tensor:
    """0-dim bool, whether a trained token has no sequence or a sequence has a hole; raises with the place where values are checked."""
    fix = "give every token of a sequence its label, masked ones too: -1 is padding, between or behind sequences"
    faults = (
        (mask & (labels < 0), "labels >= 0 at trained tokens"),
        (_holes(labels), "the label of its sequence also at a masked token between two of one sequence"),
    )
    found = torch.stack([wrong.any() for wrong, _ in faults])
    if checks.values_wanted(found) and bool(found.any()):
        wrong, expected = faults[0] if bool(found[0]) else faults[1]
        place = wrong.nonzero()[0].tolist()
        checks.fail(function, "sequence_ids", expected, f"{int(labels[tuple(place)])} at {place}", fix)
    return found.any()


def _holes(labels: Tensor) -> Tensor:
    """Shape of `labels`, bool: a token of no sequence, in whose line the nearest labels on both sides are the same."""
    width = labels.shape[-1]
    if width == 0:
        return torch.zeros_like(labels, dtype=torch.bool)
    place = torch.arange(width, device=labels.device).expand(labels.shape)
    none = labels < 0
    before = torch.where(none, -1, place).cummax(-1).values
    after = torch.where(none, width, place).flip(-1).cummin(-1).values.flip(-1)
    same = labels.gather(-1, before.clamp(min=0)) == labels.gather(-1, after.clamp(max=width - 1))
    return none & (before >= 0) & (after < width) & same


def backward_sum(values: Tensor, decay: Tensor) -> Tensor:
    """(R, C) x_t = values_t + decay_t x_{t+1} along each row; a decay of 0 cuts, so NaN and infinity behind it stay there."""
    total, reach = values.clone(), decay.clone()
    stride = 1
    while stride < values.shape[1]:
        open_ = reach[:, :-stride] != 0.0
        total[:, :-stride] += torch.where(open_, reach[:, :-stride] * total[:, stride:], 0.0)
        reach = torch.cat([torch.where(open_, reach[:, :-stride] * reach[:, stride:], 0.0), torch.zeros_like(reach[:, -stride:])], 1)
        stride *= 2
    return total


def forward_sum(values: Tensor, decay: Tensor) -> Tensor:
    """(R, C) x_t = values_t + decay_t x_{t-1} along each row."""
    return backward_sum(values.flip(1), decay.flip(1)).flip(1)


def token_values(function: str, name: str, value: Tensor, mask: Tensor) -> Tensor:
    """float64 of the mask's shape, detached, 0 where masked."""
    checks.tensor(function, name, value, shape=tuple(mask.shape), device=mask.device, fix="pass one number a token")
    if value.is_complex():
        checks.fail(function, name, "real", value, "pass one real number a token", error=TypeError)
    finite = not checks.values_wanted(value, mask) or all_finite(value)
    values = torch.where(mask, value.detach(), 0).to(torch.float64)
    if not finite and not bool(values.isfinite().all()):
        wrong = (~values.isfinite()).nonzero()
        where = ", ".join(str(place.tolist()) for place in wrong[:4])
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{function}: {name} must be finite at trained tokens, got not finite at {where}{more}; mask such tokens out or correct them"
        )
    return values
