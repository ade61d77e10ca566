"""The three levels of validation: where values are read, and where they cannot be."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gigpo_fast
from gigpo_fast import advantage, checks

X = torch.ones(3)


@pytest.mark.parametrize("level, cpu", [("auto", True), ("full", True), ("metadata", False)])
def test_values_of_cpu_tensors_are_read_under_auto_and_full(level, cpu):
    with gigpo_fast.validation(level):
        assert checks.values_wanted(X, None, torch.nn.Parameter(X)) is cpu
        assert checks.values_wanted(X, X.to("meta")) is False  # no memory, no values


def test_auto_is_the_default_of_all():
    program = "import torch; from gigpo_fast import checks; print(checks.values_wanted(torch.ones(2)), checks.full_validation())"
    environment = {name: value for name, value in os.environ.items() if name != "GIGPO_FAST_VALIDATE"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    for level, said in {"": "True False", "full": "True True", "metadata": "False False", "auto": "True False"}.items():
        more = {"GIGPO_FAST_VALIDATE": level} if level else {}
        found = subprocess.run([sys.executable, "-c", program], env=environment | more, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == said


@pytest.mark.parametrize("level", ["auto", "full"])
def test_nothing_is_read_where_operations_are_traced_or_transformed(level):
    seen = []

    def look(x):
        seen.append(checks.values_wanted(x))
        return x * 2

    with gigpo_fast.validation(level):
        for tracing in ("real", "fake", "symbolic"):
            make_fx(look, tracing_mode=tracing)(X)
        torch.func.grad(lambda x: look(x).sum())(X)
        torch.func.vmap(look)(X)
        torch.func.jvp(look, (X,), (X,))
        torch.jit.trace(look, (X,), check_trace=False)
        with FakeTensorMode() as mode:
            look(torch.ones(2))
        look(mode.from_tensor(X))
        assert seen == [False] * 9
        chosen = torch.compile(lambda x: x + 1 if checks.values_wanted(x) else x + 2, backend="eager", fullgraph=True)(X)
        assert torch.equal(chosen, X + 2)
        torch.func.grad(lambda x: x.sum())(X)
        assert checks.values_wanted(X)  # and they are read again afterwards


def test_a_level_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"level must be one of \('auto', 'full', 'metadata'\), got 'all'; use \"full\" while debugging"):
        with gigpo_fast.validation("all"):
            pass
    monkeypatch.setenv("GIGPO_FAST_VALIDATE", "yes")
    with pytest.raises(ValueError, match="GIGPO_FAST_VALIDATE must be one of .*, got 'yes'; unset it or correct it"):
        advantage.group_advantages(X, [0, 0, 0])
