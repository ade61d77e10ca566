"""The rule of agreement: |a - b| <= 1e-6 max|b| + 1e-5 |b| with b the oracle's, unless a looser one is listed with its reason."""

from collections.abc import Container
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapter import Answer

ABSOLUTE = 1e-6  # of the largest |b|
RELATIVE = 1e-5  # of each |b|


class Comparison(NamedTuple):
    """How an answer compares with the oracle's."""

    worst: float  # the largest error as a share of its tolerance; at most 1 agrees
    faults: list[str]  # one for each output that disagrees
    looser: list[str]  # the outputs that needed their looser tolerance


def compare(answer: Answer, oracle: dict[str, Any], looser: Container[str] = ()) -> Comparison:
    """Compare every output of the oracle; one that is not answered is a fault."""
    worst, faults, needed = 0.0, [], []
    for name, theirs in oracle.items():
        ours = answer.outputs.get(name)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None:
            faults.append(f"{name} is {'not answered' if ours is None else 'answered, but None in the oracle'}")
            continue
        if isinstance(theirs, str):
            faults += [] if ours == theirs else [f"{name} is {ours!r}, in the oracle {theirs!r}"]
            continue
        ours, theirs = _as_tensor(ours), _as_tensor(theirs)
        if ours.shape != theirs.shape:
            faults.append(f"{name} has shape {tuple(ours.shape)}, in the oracle {tuple(theirs.shape)}")
            continue
        shares = error(ours, theirs)
        if name in looser and name in answer.slack and bool((shares > 1).any()):
            needed.append(name)
            shares = error(ours, theirs, answer.slack[name])
        if shares.numel() == 0:
            continue
        place = int(shares.reshape(-1).argmax())
        share = float(shares.reshape(-1)[place])
        worst = max(worst, share)
        if not share <= 1:
            got, wanted = ours.reshape(-1)[place].item(), theirs.reshape(-1)[place].item()
            where = (
                f"[{', '.join(str(int(index)) for index in torch.unravel_index(torch.tensor(place), ours.shape))}]" if ours.dim() else ""
            )
            faults.append(f"{name}{where} is {got:.9g}, in the oracle {wanted:.9g}: {share:.3g} of its tolerance")
    return Comparison(worst, faults, needed)


def error(ours: Tensor, theirs: Tensor, slack: Tensor | float = 0.0) -> Tensor:
    """Each element's error as a share of its tolerance. Integers must be equal; NaN and infinity agree with themselves alone."""
    if not theirs.is_floating_point():
        return torch.where(ours == theirs, 0.0, float("inf"))
    ours, theirs = ours.double(), theirs.double()
    size = torch.where(theirs.isfinite(), theirs.abs(), 0.0)
    largest = size.max() if size.numel() else 0.0
    shares = (ours - theirs).abs() / (ABSOLUTE * largest + RELATIVE * size + slack)  # infinite over a tolerance of 0
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return torch.where(same, 0.0, torch.where(shares.isnan(), float("inf"), shares))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    value = torch.tensor(value)
    return value.double() if value.is_floating_point() else value
