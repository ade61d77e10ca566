"""Every operation compared with the reference on this machine: small cases, each path that can run here, one line a case.

A result is right when its error against float64 is at most 2x (gradients 3x) that of the reference in float32, plus a floor
of two units in the last place of the largest result. What a user runs is judged by the same rule as in the tests.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import advantage, anchor, backend, logprob, loss, objective
from .reference import advantage as reference_advantage
from .reference import anchor as reference_anchor
from .reference import logprob as reference_logprob
from .reference import loss as reference_loss

ROWS, TOKENS, HIDDEN, VOCABULARY = 6, 8, 32, 1003
HEAD = {"logit_scale": 1.25, "softcap": 8.0, "vocab_size": 1000}
TEMPERATURE = 0.8
SIZE = "size of the loss"  # sum of |terms|: terms cancel in a loss, and rounding is relative to them
Outputs = dict[str, Tensor]


class Result(NamedTuple):
    """One comparison."""

    name: str
    ok: bool
    note: str  # the error as a share of its tolerance, or what was raised


class Case(NamedTuple):
    """An operation and its reference: functions of the same named tensors, returning the same named tensors."""

    name: str
    product: Callable[[Outputs], Outputs]
    reference: Callable[[Outputs], Outputs]


def results(devices: list[torch.device]) -> Iterator[Result]:
    """Compare everything on every device and path, one at a time."""
    with _exact_matmul():
        for device in devices:
            for path in _paths(device):
                for case in CASES:
                    for dtype in _dtypes(device):
                        name = f"{device.type} {path:<6} {str(dtype).removeprefix('torch.'):<8} {case.name}"
                        yield _guarded(name, path, lambda case=case, dtype=dtype, device=device: _compare(case, dtype, device))
                for name, check in (("anchor grouping", _grouping), ("fused loss, twice: the same bits", _repeatable)):
                    yield _guarded(f"{device.type} {path:<6} {'':<8} {name}", path, lambda check=check, device=device: check(device))
            yield _guarded(f"{device.type} torch  float32  GiGPO advantages", None, lambda device=device: _advantages(device))


@functools.cache
def inputs() -> Outputs:
    """The tensors all cases share, float64 on the CPU; old and reference log-probs lie near the current ones, as in training."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shape = (ROWS, TOKENS)
    given = {
        "hidden": normal(*shape, HIDDEN),
        "weight": normal(VOCABULARY, HIDDEN) / HIDDEN**0.5,
        "bias": normal(VOCABULARY),
        "logits": 4 * normal(*shape, VOCABULARY),
        "token_ids": torch.randint(0, HEAD["vocab_size"], shape, generator=generator),
        "advantages": normal(ROWS, 1).expand(shape) * (torch.arange(ROWS) % 3 != 0)[:, None],  # a third of the rows is idle
        "mask": torch.rand(shape, generator=generator) < 0.6,
        "upstream": normal(2, *shape),
    }
    given["log_probs"] = _linear_reference(given)[0]
    return given | {name: given["log_probs"] + 0.3 * normal(*shape) for name in ("old_log_probs", "ref_log_probs")}


def _token_log_probs(given: Outputs) -> Outputs:
    found = logprob.token_log_probs(given["logits"], given["token_ids"], temperature=TEMPERATURE, **HEAD)
    return _with_gradients({"log_probs": found.log_probs, "entropy": found.entropy}, given, "logits")


def _token_log_probs_reference(given: Outputs) -> Outputs:
    log_probs, entropy = reference_logprob.token_log_probs(given["logits"], given["token_ids"], temperature=TEMPERATURE, **HEAD)
    return _with_gradients({"log_probs": log_probs, "entropy": entropy}, given, "logits")


def _linear_token_log_probs(given: Outputs) -> Outputs:
    head = logprob.Head(given["weight"], given["bias"], **HEAD)
    found = logprob.linear_token_log_probs(given["hidden"], head, given["token_ids"], temperature=TEMPERATURE)
    return _with_gradients({"log_probs": found.log_probs, "entropy": found.entropy}, given, "hidden", "weight", "bias")


def _linear_reference(given: Outputs) -> tuple[Tensor, Tensor]:
    return reference_logprob.linear_token_log_probs(
        given["hidden"], given["weight"], given["token_ids"], bias=given["bias"], temperature=TEMPERATURE, **HEAD
    )


def _linear_token_log_probs_reference(given: Outputs) -> Outputs:
    log_probs, entropy = _linear_reference(given)
    return _with_gradients({"log_probs": log_probs, "entropy": entropy}, given, "hidden", "weight", "bias")


OBJECTIVES = {
    "clip": (objective.PolicyObjective(), {}),
    "dual clip, k3, entropy": (
        objective.PolicyObjective(
            surrogate=objective.Clip(0.2, 0.28, dual=3.0), divergence=objective.KLPenalty(0.05, objective.K3(input_clip=None)),
            entropy_bonus=objective.EntropyBonus(0.01),
        ),
        {"clip_high": 0.28, "dual": 3.0, "kl": "k3", "kl_coefficient": 0.05, "entropy_coefficient": 0.01},
    ),
    "sequence ratio": (
        objective.PolicyObjective(ratio=objective.SequenceRatio(), aggregation=objective.SequenceMeanTokenMean()),
        {"ratio": "sequence", "aggregation": "sequence_mean_token_mean"},
    ),
}


def _read(given: Outputs, blocks: objective.PolicyObjective) -> Outputs:
    """The log-probs that an objective reads: one that it would not read is refused."""
    return {name: given[name] for name in ("old_log_probs", *(["ref_log_probs"] if blocks.needs_reference else []))}


def _policy_loss_case(name: str) -> Case:
    blocks, arguments = OBJECTIVES[name]

    def product(given: Outputs) -> Outputs:
        entropy = {"entropy": given["upstream"][0]} if blocks.needs_entropy else {}
        output = loss.policy_loss(given["log_probs"], given["advantages"], given["mask"], objective=blocks, **_read(given, blocks), **entropy)
        return _with_gradients({"loss": output.loss}, given, "log_probs")

    def reference(given: Outputs) -> Outputs:
        entropy = {"entropy": given["upstream"][0]} if blocks.needs_entropy else {}
        output = reference_loss.policy_loss(given["log_probs"], given["advantages"], given["mask"], **_read(given, blocks), **entropy, **arguments)
        return _with_gradients({"loss": output.loss}, given, "log_probs") | {SIZE: output.terms.abs().sum()}

    return Case(f"policy loss: {name}", product, reference)


def _fused_loss_case(name: str) -> Case:
    blocks, arguments = OBJECTIVES[name]

    def product(given: Outputs) -> Outputs:
        head = logprob.Head(given["weight"], given["bias"], **HEAD)
        output = loss.linear_policy_loss(
            given["hidden"], head, given["token_ids"], given["advantages"], given["mask"], temperature=TEMPERATURE, objective=blocks, **_read(given, blocks)
        )
        return _with_gradients({"loss": output.loss}, given, "hidden", "weight", "bias")

    def reference(given: Outputs) -> Outputs:
        log_probs, entropy = _linear_reference(given)
        entropy = {"entropy": entropy} if blocks.needs_entropy else {}
        output = reference_loss.policy_loss(log_probs, given["advantages"], given["mask"], **_read(given, blocks), **entropy, **arguments)
        return _with_gradients({"loss": output.loss}, given, "hidden", "weight", "bias") | {SIZE: output.terms.abs().sum()}

    return Case(f"fused head and loss: {name}", product, reference)


CASES = (
    Case("token log-probs, entropy", _token_log_probs, _token_log_probs_reference),
    Case("linear token log-probs, entropy", _linear_token_log_probs, _linear_token_log_probs_reference),
    *(_policy_loss_case(name) for name in OBJECTIVES),
    *(_fused_loss_case(name) for name in OBJECTIVES),
)


@functools.cache
def _expected(case: Case, dtype: torch.dtype) -> tuple[Outputs, Outputs, Outputs]:
    """The inputs rounded to `dtype`, the exact results, and those of the reference in float32."""
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs().items()}
    truth = case.reference(_leaves(given, torch.float64))
    plain = case.reference(_leaves(given, torch.float32))
    return given, truth, {name: value.detach().to(_result_dtype(name, dtype)) for name, value in plain.items()}


def _compare(case: Case, dtype: torch.dtype, device: torch.device) -> Result:
    given, truth, plain = _expected(case, dtype)
    ours = case.product(_leaves({name: value.to(device) for name, value in given.items()}, dtype))
    worst, where = 0.0, ""
    for name, want in ((name, value.detach()) for name, value in truth.items() if name != SIZE):
        got, base = ours[name].detach().cpu(), plain[name]
        if got.dtype != base.dtype or got.shape != want.shape:
            return Result("", False, f"{name} is {tuple(got.shape)} {got.dtype}, expected {tuple(want.shape)} {base.dtype}")
        floor = 2 * torch.finfo(got.dtype).eps * (truth[SIZE] if name == "loss" else want.abs().max())
        tolerance = (3 if name.startswith("d ") else 2) * (base.double() - want).abs().max() + floor
        share = float((got.double() - want).abs().max() / tolerance)
        if not share <= worst and not math.isnan(worst):  # NaN is the worst of all
            worst, where = share, name
    return Result("", worst <= 1, f"{worst:.2f} of the tolerance ({where})")


def _grouping(device: torch.device) -> Result:
    numbers = torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(1))
    labels, texts = numbers % 3, [f"You are in room {number}." * (1 + number % 5) for number in numbers.tolist()]
    cases = [(texts, labels.tolist(), texts, labels.tolist())] if device.type == "cpu" else []
    cases.append((numbers.to(device), labels.to(device), numbers.tolist(), labels.tolist()))
    for states, group, plain_states, plain_group in cases:
        got, want = anchor.group_states(states, group), reference_anchor.group_states(plain_states, plain_group)
        if not all(torch.equal(mine.cpu(), theirs) for mine, theirs in zip(got, want)):
            return Result("", False, "the groups differ from a Python dictionary's")
    return Result("", True, "equal")


def _advantages(device: torch.device) -> Result:
    generator = torch.Generator().manual_seed(2)
    draw = lambda high: torch.randint(0, high, (300,), generator=generator)  # noqa: E731
    trajectory = draw(24).sort().values
    columns = (draw(2).float(), trajectory, trajectory // 8, draw(6))
    got = advantage.gigpo_advantages(*(column.to(device) for column in columns), gamma=0.95, scale="std")
    want = reference_advantage.gigpo_advantages(*columns, gamma=0.95, scale="std")
    # One rounding to float32 of a float64 result.
    share = max(float((mine.cpu().double() - theirs).abs().max() / (2**-23 * theirs.abs().max())) for mine, theirs in zip(got, want))
    return Result("", share <= 1, f"{share:.2f} of the tolerance")


def _repeatable(device: torch.device) -> Result:
    given = {name: value.float().to(device) if value.is_floating_point() else value.to(device) for name, value in inputs().items()}
    first, second = (_fused_loss_case("clip").product(_leaves(given, torch.float32)) for _ in range(2))
    same = all(torch.equal(first[name], second[name]) for name in first)
    return Result("", same, "equal" if same else "two runs differ")


def _with_gradients(outputs: Outputs, given: Outputs, *names: str) -> Outputs:
    """The outputs and the gradients of their sum, weighed by fixed numbers, to the named inputs."""
    weights = given["upstream"]
    total = sum((value * weights[i].to(value.dtype)).sum() if value.dim() else value for i, value in enumerate(outputs.values()))
    gradients = torch.autograd.grad(total, [given[name] for name in names])
    return {**outputs, **{f"d {name}": gradient for name, gradient in zip(names, gradients)}}


def _leaves(given: Outputs, dtype: torch.dtype) -> Outputs:
    wanted = ("hidden", "weight", "bias", "logits", "log_probs")
    return {
        name: value.detach().to(dtype).clone().requires_grad_(name in wanted) if value.is_floating_point() else value for name, value in given.items()
    }


def _result_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return dtype if name.startswith("d ") else torch.float32


def _dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.bfloat16) if device.type == "cpu" else (torch.float32, torch.bfloat16, torch.float16)


def _paths(device: torch.device) -> list[str]:
    """Every path that can run on `device`; only the one asked for, if one was."""
    if backend.requested() != "auto":
        return [backend.requested()]
    can = {"triton": backend.why_not_triton(device) is None, "native": backend.why_not_native(device) is None, "torch": True}
    return [name for name, possible in can.items() if possible]


def _guarded(name: str, path: str | None, check: Callable[[], Result]) -> Result:
    try:
        with backend.use(path) if path else contextlib.nullcontext():
            return check()._replace(name=name)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding of this test, and the others still run
        return Result(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


@contextlib.contextmanager
def _exact_matmul():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
