"""No tensor is made on the default device or of the default dtype: both belong to the user's process, not to this library.

A factory call without `device=` makes its tensor wherever `torch.set_default_device` points, and kernels would read memory that is not
theirs; one without `dtype=` changes precision with `torch.set_default_dtype`. What the calls compute is tested in test_process_state.py.
"""

import ast
import pathlib

import pytest
import torch
from torch.utils._device import _device_constructors

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted({path for folder in ("gigpo_fast", "kernels") for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts})
FACTORIES = {function.__name__ for function in _device_constructors()}  # torch's own list of what the default device decides
OF_INTEGERS = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}  # given integers, int64 whatever the default dtype
OF_THE_DATA = {"as_tensor", "asarray"}
NEVER = {"set_default_device", "set_default_dtype", "get_default_device", "get_default_dtype", "set_default_tensor_type", "set_num_threads"}
LEGACY = {"Tensor", "FloatTensor", "LongTensor", "IntTensor", "BoolTensor", "DoubleTensor", "HalfTensor", "ByteTensor"}


ALLOWED = {"gigpo_fast/arrays.py: torch.tensor needs dtype=": "asks of what kind the numbers of a list are; floats are then made float32"}


def faults(source: str) -> list[str]:
    """What of `source` depends on the process: one line for each call."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) != "torch":
            continue
        name, given = call.func.attr, {keyword.arg for keyword in call.keywords}
        missing = []
        if name in FACTORIES:
            missing = [] if "device" in given else ["device="]
            integers = name in OF_INTEGERS and not any(
                isinstance(part, ast.Constant) and type(part.value) is float for part in ast.walk(call)
            )
            if "dtype" not in given and not integers and name not in OF_THE_DATA:
                missing.append("dtype=")
        elif name == "where" and len(call.args) == 3 and all(_is_float(value) for value in call.args[1:]):
            missing = ["a tensor or integers for the two numbers: of two floats it makes the default dtype"]
        elif name in NEVER or name in LEGACY:
            missing = ["another way: it reads or changes the state of the process"]
        found += [f"line {call.lineno}: torch.{name} needs {need}" for need in missing]
    return found


def _is_float(value: ast.expr) -> bool:
    value = value.operand if isinstance(value, ast.UnaryOp) else value
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) == "float"
    return isinstance(value, ast.Constant) and type(value.value) is float


def test_the_list_of_factories_is_torchs():
    assert {"zeros", "ones", "empty", "full", "arange", "linspace", "tensor", "as_tensor", "rand", "randn", "eye"} <= FACTORIES
    assert all(hasattr(torch, name) for name in NEVER | LEGACY)


@pytest.mark.parametrize(
    "source, faulty",
    [
        ("torch.zeros(3)", 2),
        ("torch.zeros(3, device=x.device)", 1),
        ("torch.zeros(3, dtype=torch.float32, device='cpu')", 0),
        ("torch.arange(3, device='cpu')", 0),
        ("torch.arange(0.5, device='cpu')", 1),
        ("torch.as_tensor(x, device='cpu')", 0),
        ("x.new_zeros(3); torch.zeros_like(x); torch.frombuffer(b, dtype=torch.uint8)", 0),
        ("torch.where(m, 1.0, -1.0)", 1),
        ("torch.where(m, float('nan'), 0.0)", 1),
        ("torch.where(m, x, 0.0)", 0),
        ("torch.set_num_threads(1)", 1),
    ],
)
def test_the_walk_finds_what_depends_on_the_process(source, faulty):
    assert len(faults(source)) == faulty


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_tensor_is_made_by_default(path):
    name = path.relative_to(ROOT).as_posix()
    found = [line for line in faults(path.read_text(encoding="utf-8")) if f"{name}: {line.partition(': ')[2]}" not in ALLOWED]
    assert not found, f'{name}: name device= (a tensor\'s, or "cpu") and dtype=:\n' + "\n".join(found)
