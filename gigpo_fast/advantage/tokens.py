"""Between steps and tokens: which step a token belongs to, and a step's advantage at each of its tokens."""

import torch
from torch import Tensor

from .. import checks
from ..values import all_finite
from . import arguments


def step_ids(
    mask: Tensor,  # (B, T) bool, True = this token is trained
    *,
    turns: bool = False,
) -> Tensor:  # (B, T) int64, -1 = none
    """The step that each trained token belongs to.

    The same, slowly:

        step = -1
        for i, t in itertools.product(range(B), range(T)):
            step += bool(mask[i, t] and (t == 0 or not mask[i, t - 1]))
            ids[i, t] = (step if turns else i) if mask[i, t] else -1

    Without `turns` row i is step i (one row per step). With `turns` a row is a whole trajectory and each run of trained tokens in
    it is one step; steps are numbered row by row, in time. A turn without a trained token gets no number, and two turns with
    nothing between them are one run: keep at least one prompt token between turns, and leave empty ones out of the rewards.
    """
    checks.tensor("step_ids", "mask", mask, shape=(None, None), fix="pass a mask with one row per sequence")
    checks.mask("step_ids", mask, tuple(mask.shape), mask.device)
    if turns:
        starts = mask.clone()
        starts[:, 1:] &= ~mask[:, :-1]
        ids = starts.flatten().cumsum(0).view(mask.shape) - 1
    else:
        ids = torch.arange(mask.shape[0], device=mask.device)[:, None]
    return torch.where(mask, ids, -1)


def to_tokens(
    advantages: Tensor,  # (S,) float, advantage of each step
    step_ids: Tensor,  # any shape, int64, step of each token, -1 = none
) -> Tensor:  # shape of step_ids, dtype of advantages
    """The advantage of its step at every token, 0 where there is none.

    The same, slowly: `torch.where(step_ids >= 0, advantages[step_ids.clamp(min=0)], 0.0)`.

    Every step stands in `step_ids`, up to the last one, but for rows of one step each, which may be masked throughout. Where values are
    checked raises for ids outside [-1, S), for advantages that are left over or, at a token, not finite; where checking would wait
    such a call gives NaN. Spread the whole batch and cut it then: a micro-batch's step_ids leave advantages over.
    """
    checks.tensor("to_tokens", "advantages", advantages, shape=(None,), dtypes=checks.FLOATS, fix="pass one advantage a step")
    checks.tensor(
        "to_tokens", "step_ids", step_ids, dtypes=(torch.int64,), device=advantages.device, fix="advantage.step_ids(mask) makes them"
    )
    steps = advantages.shape[0]
    row_is_step = step_ids.dim() == 2 and step_ids.shape[0] == steps
    if checks.values_wanted(step_ids, advantages):
        _check_ids(advantages, step_ids, left_over=not row_is_step)
        return torch.cat([advantages, advantages.new_zeros(1)])[torch.where(step_ids < 0, steps, step_ids)]
    # Where checking would wait.
    # Two more entries: 0 for the tokens of no step, so that nothing stored in a step can reach them, and NaN for steps that are none.
    padded = torch.cat([advantages, advantages.new_zeros(1), advantages.new_full((1,), float("nan"))])
    outside = (step_ids < -1) | (step_ids >= steps)
    found = padded[torch.where(outside, steps + 1, torch.where(step_ids < 0, steps, step_ids))]
    if row_is_step:
        return found
    over = torch.cat([step_ids.reshape(-1), step_ids.new_full((1,), -1)]).amax() + 1 < steps
    return found.masked_fill(over, float("nan"))


def _check_ids(advantages: Tensor, step_ids: Tensor, *, left_over: bool) -> None:
    """Raise for ids outside [-1, S), and, if asked, for advantages behind the last one that a token has."""
    steps, known = advantages.shape[0], 0
    if step_ids.numel():
        low, high = (bound.item() for bound in torch.aminmax(step_ids))
        known = high + 1
        if low < -1 or high >= steps:
            arguments.fail_at(
                "to_tokens",
                "step_ids",
                ((step_ids < -1) | (step_ids >= steps)).flatten(),
                f"in [-1, {steps}) for {steps} advantages",
                "an id outside",
                "compute advantages and step_ids from the same batch: one advantage for every step that has trained tokens",
            )
    if left_over and known < steps:
        checks.fail(
            "to_tokens",
            "advantages",
            f"({known},), one a step of step_ids",
            advantages,
            "where a row holds several steps make ids with step_ids(mask, turns=True); spread the whole batch, then cut micro-batches; "
            "leave out last steps without a trained token",
        )
    if not all_finite(advantages):
        read = torch.zeros(steps + 1, dtype=torch.bool, device=step_ids.device)  # -1 is the last entry: no step
        read[step_ids.flatten()] = True  # what no token reads may be anything
        fix = "find where they come from; a step that is not to count has advantage 0"
        wrong = read[:steps] & ~advantages.isfinite()
        arguments.fail_at("to_tokens", "advantages", wrong, "finite at steps with tokens", "not finite", fix)
