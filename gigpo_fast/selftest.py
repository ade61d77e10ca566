"""Every operation compared with the reference on this machine: each path that can run here, one line a case, under 30 seconds.

Losses and advantages go through `gigpo_fast.testing`. Log-probs and the fused loss are compared here once more, over a
vocabulary that takes several blocks of every kernel: their error against float64 may be 2x (gradients 3x) that of torch with
operands upcast to float32, plus two units in the last place of the largest result.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import advantage, anchor, backend, logprob, loss, objective, testing
from .reference import anchor as reference_anchor
from .reference import logprob as reference_logprob
from .reference import loss as reference_loss
from .testing.report import GRADIENT_FACTOR, VALUE_FACTOR, compared, judged

ROWS, TOKENS, HIDDEN, VOCABULARY = 6, 8, 32, 5003
HEAD = {"logit_scale": 1.25, "softcap": 8.0, "vocab_size": 5000}
TEMPERATURE = 0.8
LEAVES = ("hidden", "weight", "bias", "logits")
Outputs = dict[str, Tensor]

OBJECTIVES = {
    "clip": objective.PolicyObjective(),
    "dual clip, k3, entropy": objective.PolicyObjective(
        surrogate=objective.Clip(0.2, 0.28, dual=3.0), divergence=objective.KLPenalty(0.05), entropy_bonus=objective.EntropyBonus(0.01)
    ),
    "sequence ratio": objective.PolicyObjective(ratio=objective.SequenceRatio(), aggregation=objective.SequenceMeanTokenMean()),
}


class Result(NamedTuple):
    """One line of the self-test."""

    name: str
    ok: bool
    note: str  # the worst error as a share of its tolerance, or what is wrong


class Operation(NamedTuple):
    """A function of the shared inputs and its reference; both return named tensors, gradients under "d name"."""

    name: str
    product: Callable[[Outputs], Outputs]
    reference: Callable[[Outputs], Outputs]


def results(devices: list[torch.device]) -> Iterator[Result]:
    """Compare everything on every device and path, one at a time."""
    with _exact_matmul():
        for device in devices:
            for path in _paths(device):
                for name, check in _checks(device):
                    yield _guarded(f"{device.type} {path:<6} {name}", path, check)


def inputs() -> Outputs:
    """The tensors that all operations share, float64 on the CPU; old log-probs lie near the current ones, as in training."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")  # noqa: E731
    shape = (ROWS, TOKENS)
    given = {
        "hidden": normal(*shape, HIDDEN),
        "weight": normal(VOCABULARY, HIDDEN) / HIDDEN**0.5,
        "bias": normal(VOCABULARY),
        "logits": 4 * normal(*shape, VOCABULARY),
        "token_ids": torch.randint(0, HEAD["vocab_size"], shape, generator=generator, device="cpu"),
        "advantages": normal(ROWS, 1).expand(shape) * (torch.arange(ROWS, device="cpu") % 3 != 0)[:, None],  # a third of the rows is idle
        "mask": torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") < 0.6,
        "upstream": normal(2, *shape),
    }
    return given | {"old_log_probs": _linear_reference(given)[0] + 0.3 * normal(*shape)}


def _checks(device: torch.device) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of one path: name and a function that returns a note or raises AssertionError."""
    low = (torch.bfloat16,) if device.type == "cpu" else (torch.bfloat16, torch.float16)
    for operation in OPERATIONS:
        for dtype in (torch.float32, *low):
            name = f"{operation.name}, {str(dtype).removeprefix('torch.')}"
            yield name, functools.partial(_compare, operation, dtype, device)
    for name, blocks in OBJECTIVES.items():
        for linear, function in ((False, loss.policy_loss), (True, loss.linear_policy_loss)):
            yield f"{function.__name__}: {name}", functools.partial(_loss, function, blocks, linear, (torch.float32, *low), device)
    yield "linear_policy_loss twice: the same bits", lambda: _repeatable(device)
    yield "group_states", lambda: _grouping(device)
    yield "GiGPO advantages", lambda: _advantages(device)


def _token_log_probs(given: Outputs) -> Outputs:
    found = logprob.token_log_probs(given["logits"], given["token_ids"], temperature=TEMPERATURE, **HEAD)
    return _with_gradients(found._asdict(), given, "logits")


def _token_log_probs_reference(given: Outputs) -> Outputs:
    log_probs, entropy = reference_logprob.token_log_probs(given["logits"], given["token_ids"], temperature=TEMPERATURE, **HEAD)
    return _with_gradients({"log_probs": log_probs, "entropy": entropy}, given, "logits")


def _linear_token_log_probs(given: Outputs) -> Outputs:
    head = logprob.Head(given["weight"], given["bias"], **HEAD)
    found = logprob.linear_token_log_probs(given["hidden"], head, given["token_ids"], temperature=TEMPERATURE)
    return _with_gradients(found._asdict(), given, "hidden", "weight", "bias")


def _linear_token_log_probs_reference(given: Outputs) -> Outputs:
    log_probs, entropy = _linear_reference(given)
    return _with_gradients({"log_probs": log_probs, "entropy": entropy}, given, "hidden", "weight", "bias")


def _linear_reference(given: Outputs) -> tuple[Tensor, Tensor]:
    return reference_logprob.linear_token_log_probs(
        given["hidden"], given["weight"], given["token_ids"], bias=given["bias"], temperature=TEMPERATURE, **HEAD
    )


def _fused_loss(given: Outputs) -> Outputs:
    head = logprob.Head(given["weight"], given["bias"], **HEAD)
    operands = (given["hidden"], head, given["token_ids"], given["advantages"], given["mask"])
    output = loss.linear_grpo_loss(*operands, old_log_probs=given["old_log_probs"], temperature=TEMPERATURE)
    # Terms of both signs cancel in a loss, so its value is left to `testing`, which knows their size.
    return _with_gradients({"loss": output.loss}, given, "hidden", "weight", "bias", keep=False)


def _fused_loss_reference(given: Outputs) -> Outputs:
    log_probs, _ = _linear_reference(given)
    output = reference_loss.policy_loss(log_probs, given["advantages"], given["mask"], old_log_probs=given["old_log_probs"])
    return _with_gradients({"loss": output.loss}, given, "hidden", "weight", "bias", keep=False)


OPERATIONS = (
    Operation("token_log_probs", _token_log_probs, _token_log_probs_reference),
    Operation("linear_token_log_probs", _linear_token_log_probs, _linear_token_log_probs_reference),
    Operation("linear_grpo_loss, gradients", _fused_loss, _fused_loss_reference),
)


def _compare(operation: Operation, dtype: torch.dtype, device: torch.device) -> str:
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs().items()}
    truth, plain = (operation.reference(_leaves(given, precision)) for precision in (torch.float64, torch.float32))
    ours = operation.product(_leaves({name: value.to(device) for name, value in given.items()}, dtype))
    comparisons = []
    for name, want in truth.items():
        want = want.detach()
        gradient = name.startswith("d ")
        kind, factor = (dtype, GRADIENT_FACTOR) if gradient else (torch.float32, VALUE_FACTOR)
        floor = 2 * torch.finfo(kind).eps * float(want.abs().max())
        comparisons.append(compared(operation.name, name, ours[name], want, plain[name].to(kind), factor, floor, kind))
    return _share(judged("selftest", comparisons))


def _loss(function: Callable, blocks: objective.PolicyObjective, linear: bool, dtypes: tuple, device: torch.device) -> str:
    bound = functools.partial(function, objective=blocks)
    return _share(testing.check_loss(bound, objective=blocks, linear=linear, dtypes=dtypes, device=device))


def _advantages(device: torch.device) -> str:
    return _share(testing.check_advantages(advantage.gigpo_advantages, scale="std", device=device))


def _share(report: testing.Report) -> str:
    return f"{len(report.comparisons)} comparisons, worst error {report.worst.share:.2f} of its tolerance"


def _repeatable(device: torch.device) -> str:
    given = {name: value.to(device) for name, value in inputs().items()}
    first, second = (_fused_loss(_leaves(given, torch.float32)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "two runs differ"
    return "equal"


def _grouping(device: torch.device) -> str:
    numbers = torch.randint(0, 40, (500,), generator=torch.Generator(device="cpu").manual_seed(1), device="cpu")
    labels, texts = (numbers % 3).tolist(), [f"You are in room {number}. " * (1 + number) for number in numbers.tolist()]
    wanted = reference_anchor.group_states(texts, labels)
    states = [(numbers.to(device), (numbers % 3).to(device))] + ([(texts, labels)] if device.type == "cpu" else [])
    for mine, group in states:
        found = anchor.group_states(mine, group)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, wanted)), "not the groups of a Python dictionary"
    return "equal"


def _with_gradients(outputs: Outputs, given: Outputs, *names: str, keep: bool = True) -> Outputs:
    """The gradients of the outputs' sum, weighed by fixed numbers, to the named inputs; and the outputs, if kept."""
    weights = given["upstream"]
    total = sum((value * weights[i].to(value.dtype)).sum() if value.dim() else value for i, value in enumerate(outputs.values()))
    gradients = torch.autograd.grad(total, [given[name] for name in names])
    return (outputs if keep else {}) | {f"d {name}": gradient for name, gradient in zip(names, gradients)}


def _leaves(given: Outputs, dtype: torch.dtype) -> Outputs:
    floats = {name: value.to(dtype, copy=True).requires_grad_(name in LEAVES) for name, value in given.items() if value.is_floating_point()}
    return given | floats


def _paths(device: torch.device) -> list[str]:
    """Every path that can run on `device`; only the one asked for, if one was."""
    if backend.requested() != "auto":
        return [backend.requested()]
    can = {"triton": backend.why_not_triton(device) is None, "native": backend.why_not_native(device) is None, "torch": True}
    return [name for name, possible in can.items() if possible]


def _guarded(name: str, path: str, check: Callable[[], str]) -> Result:
    try:
        with backend.use(path):
            return Result(name, True, check())
    except AssertionError as error:
        return Result(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding of this test, and the others still run
        return Result(name, False, f"raised {type(error).__name__}: {error}")


@contextlib.contextmanager
def _exact_matmul():
    # TF32 and reduced-precision sums are a user's choice about speed, not what is tested here.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
