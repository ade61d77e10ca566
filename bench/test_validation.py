"""What checking values costs a call on a CPU, every function over 16,384 steps or tokens: the share is to stay under 3 %.

    pytest bench/test_validation.py -s
"""

import pytest
import torch

from bench import validation


@pytest.mark.parametrize("kind", ["steps float32", "steps float64", "tokens float32", "losses"])
def test_values_are_checked_at_next_to_no_cost(kind):
    calls = {
        "steps float32": lambda: validation.step_calls(torch.float32),
        "steps float64": lambda: validation.step_calls(torch.float64),
        "tokens float32": lambda: validation.token_calls(torch.float32),
        "losses": validation.loss_calls,
    }[kind]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        print(f"\n{kind:40s} {'call, us':>10s} {'checks, us':>10s} {'share':>7s}")
        for name, call in calls.items():
            found = validation.cost(call)
            print(f"{name:40s} {found.microseconds:10.1f} {found.checks:10.1f} {found.share:7.1%}", flush=True)
    finally:
        torch.set_num_threads(threads)
