"""`check_loss`: a loss and all of its gradients against the float64 reference, over a table of cases."""

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..head import Head
from ..objective import PolicyObjective
from ..recipes import recipe
from ..reference.logprob import token_log_probs
from ..reference.loss import policy_loss
from .described import described
from .loss_cases import HEAD_CASES, HINTS, LOSS_CASES, draw, spoil
from .report import GRADIENT_FACTOR, VALUE_FACTOR, Comparison, Report, WrongReturn, chosen, compared, judged

_UPSTREAM = 3.0  # the loss is multiplied by it before the backward: an upstream gradient that is dropped shows
# The floor, in roundings of the largest entry. In float64 both sides round alike and plain torch's error against itself is 0.
_ROUNDINGS = {torch.float64: 512.0}
_FEW = 8.0


def check_loss(
    fn: Callable[..., Any],
    *,
    objective: PolicyObjective | None = None,
    linear: bool = False,
    dtypes: Iterable[torch.dtype] = (torch.float64, torch.float32, torch.bfloat16),
    cases: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> Report:
    """Compare a loss and its gradients with the reference; raise AssertionError with one line for each mistake.

    `fn` is called as fn(log_probs, advantages, mask, ...), or with `linear` as fn(hidden, head, token_ids, advantages, mask, ...),
    with those keywords of loss.policy_loss that the case and the objective need, and returns a 0-dim tensor or an object with
    `.loss`. `objective` says what fn computes (default recipes.recipe("grpo").objective); fn itself is not given it.
    `cases` picks from LOSS_CASES by name, for a function that lacks a feature. A line reads: case, dtypes, quantity, got, expected, and
    what usually causes it. A result of another type is named before anything is compared.
    Raises TypeError for an objective with blocks that the reference does not know.
    """
    checks.process("check_loss")
    objective = recipe("grpo").objective if objective is None else objective
    plain_objective = described(objective)
    names = [name for name in chosen("check_loss", LOSS_CASES, cases) if linear or name not in HEAD_CASES]
    comparisons: list[Comparison] = []
    for name in names:
        for dtype in dtypes:
            with torch.inference_mode(False), torch.enable_grad():  # gradients are compared, whatever the caller's mode
                comparisons += _compare(fn, objective, plain_objective, linear, name, dtype, torch.device(device))
    return judged("check_loss", comparisons, HINTS)


def _compare(fn, objective, plain_objective, linear: bool, name: str, dtype: torch.dtype, device: torch.device) -> list[Comparison]:
    batch, case = draw(name), f"{name}, {str(dtype).removeprefix('torch.')}"
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = ("hidden", "weight", "bias") if linear else ("log_probs", "entropy") if objective.needs_entropy else ("log_probs",)
    leaves = {key: getattr(batch, key).to(dtype) for key in wanted if getattr(batch, key) is not None}
    leaves64 = {key: value.double() for key, value in leaves.items()}

    exact = _log_probs(leaves64, batch, linear, torch.float64, None)[0]  # old and reference log-probs lie around these
    tokens = {"advantages": batch.advantages.to(compute)}
    if not batch.on_policy:
        tokens["old_log_probs"] = (exact - batch.log_ratio).to(compute)
    if objective.needs_reference:
        tokens["ref_log_probs"] = (exact - batch.ref_gap).to(compute)
    extras = {key: getattr(batch, key) for key in objective.reads}
    extras = {key: value.to(compute) if value.is_floating_point() else value.clone() for key, value in extras.items()}
    for key in ("rollout_log_probs", "teacher_log_probs", "previous_log_probs"):  # drawn as distances from the policy
        if key in extras:
            extras[key] = (exact - getattr(batch, key)).to(compute)
    if batch.garbage:
        spoil(batch, leaves, leaves64, tokens, extras)

    def reference(operands: dict[str, Tensor], precision: torch.dtype, rounded: torch.dtype | None):
        own = {key: value.clone().requires_grad_() for key, value in operands.items()}
        log_probs, entropy = _log_probs(own, batch, linear, precision, rounded)
        given = {key: value.to(precision) for key, value in tokens.items()}
        result = policy_loss(log_probs, mask=batch.mask, **given, extras=extras, entropy=entropy, sequence_ids=batch.sequence_ids,
                             denominator=batch.denominator, **plain_objective)  # fmt: skip
        gradients = torch.autograd.grad(_UPSTREAM * result.loss, list(own.values()), allow_unused=True, materialize_grads=True)
        return result, dict(zip(own, gradients))

    oracle, oracle_gradients = reference(leaves64, torch.float64, None)
    plain, plain_gradients = reference(leaves, compute, None if dtype == compute else dtype)
    try:
        loss, found = _call(fn, leaves, tokens, extras, batch, objective, linear, device)
    except WrongReturn:
        raise
    except Exception as error:  # noqa: BLE001 - whatever fn raises is a finding
        return [Comparison(case, f"raised {type(error).__name__}: {error}", math.inf, 0.0)]
    rounding = _ROUNDINGS.get(dtype, _FEW) * torch.finfo(compute).eps / 2
    comparisons = [compared(case, "loss", loss, oracle.loss, plain.loss, VALUE_FACTOR, rounding * float(oracle.terms.abs().sum()), compute)]
    for key, gradient in oracle_gradients.items():
        last = 0.0 if dtype == compute else torch.finfo(dtype).eps / 2  # the result itself is rounded
        finite = gradient[torch.isfinite(gradient)].abs()
        floor = (rounding + last) * float(finite.max() if finite.numel() else 0.0)
        comparisons.append(compared(case, f"gradient of {key}", found[key], gradient, plain_gradients[key], GRADIENT_FACTOR, floor, dtype))
    return comparisons


def _log_probs(
    leaves: dict[str, Tensor], batch: SimpleNamespace, linear: bool, precision: torch.dtype, rounded: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """(log_probs, entropy) in `precision`; from trained tokens alone, 0 elsewhere, if they come from a head."""
    if not linear:
        entropy = leaves.get("entropy")
        return leaves["log_probs"].to(precision), None if entropy is None else entropy.to(precision)
    logits = leaves["hidden"][batch.mask].to(precision) @ leaves["weight"].to(precision).T
    if "bias" in leaves:
        logits = logits + leaves["bias"].to(precision)
    if rounded is not None:
        logits = RoundGradient.apply(logits, rounded)
    found = token_log_probs(
        logits, batch.token_ids[batch.mask], temperature=batch.temperature, logit_scale=batch.logit_scale, softcap=batch.softcap
    )
    log_probs, entropy = (value.new_zeros(batch.mask.shape).masked_scatter(batch.mask, value) for value in found)
    return log_probs, entropy


class RoundGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded once to a low precision, with fp32's range."""

    @staticmethod
    def forward(ctx, value, dtype):
        ctx.dtype = dtype
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        if gradient.numel() == 0:
            return gradient, None
        scale = torch.exp2(torch.ceil(torch.log2(gradient.abs().amax().clamp(min=1e-37))))
        return (gradient / scale).to(ctx.dtype).to(gradient.dtype) * scale, None


def _call(fn, leaves, tokens, extras, batch, objective, linear: bool, device: torch.device) -> tuple[Tensor, dict[str, Tensor | None]]:
    """fn's loss and gradients on `device`."""
    own = {key: value.clone().to(device).requires_grad_() for key, value in leaves.items()}
    keywords: dict[str, Any] = {key: value.to(device) for key, value in tokens.items()}
    advantages, mask = keywords.pop("advantages"), batch.mask.to(device)
    if extras:
        keywords["extras"] = {key: value.to(device) for key, value in extras.items()}
    if batch.sequence_ids is not None and objective.needs_sequences:
        keywords["sequence_ids"] = batch.sequence_ids.to(device)
    if batch.denominator is not None:
        keywords["denominator"] = batch.denominator
    if linear:
        if batch.temperature != 1.0:
            keywords["temperature"] = batch.temperature
        bare = batch.bias is None and batch.logit_scale == 1.0 and batch.softcap is None
        head = own["weight"] if bare else Head(own["weight"], own.get("bias"), batch.logit_scale, batch.softcap)
        result = fn(own["hidden"], head, batch.token_ids.to(device), advantages, mask, **keywords)
    else:
        if "entropy" in own:
            keywords["entropy"] = own["entropy"]
        result = fn(own["log_probs"], advantages, mask, **keywords)
    loss = getattr(result, "loss", result)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise WrongReturn("check_loss: fn must return a 0-dim tensor, or an object with .loss that is one, "
                          f"got {type(result).__name__} {checks.describe(loss)}; sum what it has of each token")  # fmt: skip
    (_UPSTREAM * loss).backward()
    if "entropy" in own and own["entropy"].grad is None:  # read by a mask alone: its gradient is 0
        own["entropy"].grad = torch.zeros_like(own["entropy"])
    return loss.detach(), {key: value.grad for key, value in own.items()}
