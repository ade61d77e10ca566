"""Results do not depend on the state of the process: every public function, bit for bit, under each state that a program may be in.

tests/process_state_calls.py has one small call of every function. Here they run under another default device and dtype, with constants made
under inference mode, under autocast, on other threads, in a forked child, between the user's hooks. The sources are walked for what makes
a tensor by default in test_factory_calls.py.
"""

import contextlib
import functools
import os
import subprocess
import sys
import threading

import pytest
import torch

from gigpo_fast import loss
from tests import process_state_calls as table
from tests.process_state_calls import CALLS, NO_ROW, Inputs, differences, measured, outcome

ALL = pytest.mark.parametrize("name", CALLS)


@functools.cache
def plain(name: str) -> list:
    """What a call gives in a process that nobody has touched."""
    return outcome(name, Inputs())


@contextlib.contextmanager
def setting(change, value, restored):
    change(value)
    try:
        yield
    finally:
        change(restored)


@contextlib.contextmanager
def moving_hooks():
    """Saved tensors leave and come back as copies, as offloading does; nothing may come back before the backward."""

    def unpack(value):
        raise AssertionError("a saved tensor was asked for in the forward")

    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach().clone(), unpack):
        yield


STATES = {
    "another default device": lambda: setting(torch.set_default_device, "meta", None),
    "default dtype bfloat16": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default dtype float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic algorithms": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "two threads": lambda: setting(torch.set_num_threads, 2, torch.get_num_threads()),
}


def test_every_public_function_has_a_row():
    public = set(table.public_functions())
    missing, gone = sorted(public - set(CALLS) - set(NO_ROW)), sorted(set(NO_ROW) - public)
    assert not missing, f"give these a call in tests/process_state_calls.py: {missing}"
    assert not gone, f"these are no public functions any more: {gone}"


@ALL
@pytest.mark.parametrize("state", STATES)
def test_results_do_not_depend_on(state, name):
    expected, b = plain(name), Inputs()
    with STATES[state]():
        found = outcome(name, b)
    assert not differences(found, expected)


@ALL
def test_inputs_made_under_inference_mode(name):
    """Rollout tensors and frozen heads come from there; values and gradients are those of ordinary ones."""
    assert not differences(outcome(name, Inputs(torch.inference_mode())), plain(name))


@ALL
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_calls_without_gradients(mode, name):
    with mode():
        found = outcome(name, Inputs())
    assert not differences(measured(found), measured(plain(name)[: len(found)]))


@ALL
def test_under_autocast(name):
    """Autocast casts the operands of the head's product, as documented, and changes nothing else."""
    several = name in ("logprob.linear_token_log_probs", "loss.linear_policy_loss", "recipes.recipe")  # calls, whose gradients add up
    with torch.no_grad() if several else contextlib.nullcontext():
        found = outcome(name, Inputs(), around=lambda: torch.autocast("cpu", torch.bfloat16))
        linear = several or "linear" in name or name == "loss modules"
        expected = outcome(name, Inputs().lowered(torch.bfloat16)) if linear else plain(name)
    assert not differences(found, expected)


@ALL
def test_saved_tensors_that_are_carried_away(name):
    """A private graph inside of a function would come back during its forward; the user's own graph comes back in the backward."""
    if name == "testing.check_loss":
        pytest.skip("what it is for is to take gradients")
    b = Inputs()
    with moving_hooks():
        table.flat(CALLS[name](b))
    copies = lambda: torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach().clone(), lambda value: value)  # noqa: E731
    assert not differences(outcome(name, b, around=copies), plain(name))


@ALL
def test_in_another_python_thread(name):
    expected, found = plain(name), []
    runner = threading.Thread(target=lambda: found.extend(outcome(name, Inputs())))
    runner.start()
    runner.join()
    assert not differences(found, expected)


def test_in_several_python_threads_at_once():
    expected, wrong = {name: plain(name) for name in CALLS}, []

    def run(first: int) -> None:
        b, names = Inputs(), list(CALLS)
        for name in names[first:] + names[:first]:
            wrong.extend(f"{name}: {line}" for line in differences(outcome(name, b), expected[name]))

    threads = [threading.Thread(target=run, args=(first,)) for first in (0, 20, 40, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@ALL
def test_a_call_changes_no_state(name):
    """Neither settings nor the position of the random numbers."""
    b = Inputs()
    state = lambda: (  # noqa: E731
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
    )  # fmt: skip
    before, random = state(), torch.random.get_rng_state()
    CALLS[name](b)
    assert state() == before and torch.equal(torch.random.get_rng_state(), random)


def test_a_trained_tensor_from_inference_mode_is_refused():
    """A view of it would lose its gradient, so the message says what to do, and doing it works."""
    b = Inputs()
    with torch.inference_mode():
        head = torch.randn(12, 8).requires_grad_()
    call = lambda weight: loss.linear_grpo_loss(b.hidden, weight, b.token_ids, b.advantages, b.mask)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"linear_policy_loss: head must be a tensor that autograd can record, got .* clone it"):
        call(head)
    clone = head.clone().detach().requires_grad_()
    call(clone).loss.backward()
    assert clone.grad is not None


# ---- processes: forked ones, and new ones whose state is set before the package is first used --------------------------------------------

FORKED = """
import os, signal, torch
torch.set_num_threads(2)
from tests.process_state_calls import CALLS, Inputs, differences, outcome
b = Inputs()
expected = {name: outcome(name, b) for name in CALLS}
torch.randn(1 << 20).exp().sum()  # the parent's threads run
if os.fork() == 0:
    signal.alarm(60)  # a child that hangs is killed
    status, advice = 0, "call torch.set_num_threads(1) in the child"
    for name in CALLS:
        try:
            wrong = differences(outcome(name, b), expected[name])
            print("right" if not wrong else f"wrong: {wrong}", name, flush=True)
        except RuntimeError as error:
            print("refused" if advice in str(error) else f"wrong: {error}", name, flush=True)
    torch.set_num_threads(1)
    for name in CALLS:
        wrong = differences(outcome(name, b), expected[name])
        print("on one thread right" if not wrong else f"wrong: {wrong}", name, flush=True)
    os._exit(0)
print("ended with", os.wait()[1])
"""
WITHOUT_LOOPS = {"pairwise.halves", "distributed.gather_rows", "distributed.equal_row_counts", "Aggregation.count"}  # right at once


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_in_a_forked_child():
    """Each function refuses, before it waits for threads that are gone, and says what to do; after that it is right."""
    lines = _child(FORKED).splitlines()
    assert lines[-1] == "ended with 0", lines[-3:]
    assert not [line for line in lines if line.startswith("wrong")]
    refused = {line.removeprefix("refused ") for line in lines if line.startswith("refused ")}
    assert refused >= set(CALLS) - WITHOUT_LOOPS, sorted(set(CALLS) - WITHOUT_LOOPS - refused)
    assert [line for line in lines if line.startswith("on one thread")] == [f"on one thread right {name}" for name in CALLS]


FRESH = """
import contextlib, sys, torch
{state}
from tests.process_state_calls import CALLS, Inputs, outcome
with {around}:
    found = {{name: outcome(name, Inputs(), around=lambda: {around}) for name in CALLS}}
{after}
torch.save(found, sys.argv[1])
"""
PLAIN = "contextlib.nullcontext()"
FIRST_USES = {
    "default device and dtype": ('torch.set_default_device("meta"); torch.set_default_dtype(torch.bfloat16)', PLAIN, ""),
    # What is made once and kept must not be an inference tensor: the second round takes gradients.
    "inference mode": ("", "torch.inference_mode()", "found = {name: outcome(name, Inputs()) for name in CALLS}"),
}


@pytest.mark.parametrize("state", FIRST_USES)
def test_the_package_is_first_used_under(state, tmp_path):
    before, around, after = FIRST_USES[state]
    _child(FRESH.format(state=before, around=around, after=after), str(tmp_path / "found"))
    found = torch.load(tmp_path / "found", weights_only=False)
    wrong = {name: differences(found[name], plain(name)) for name in CALLS}
    assert not {name: lines for name, lines in wrong.items() if lines}


def _child(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=180, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
