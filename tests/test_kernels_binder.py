"""Every launch of every kernel through Triton's own launcher, up to the compiled kernel: a driver that has no device stands in for CUDA's.

The launcher decides by the arguments what to compile: types, which numbers are constants, what is divisible by 16. test_kernels_compile.py
imitates that, so what is compiled there must be what is compiled here.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton kernels need triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the launcher", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from gigpo_fast.kernels import clip_loss, rows_backward, rows_forward, segments_moments, segments_scan  # noqa: E402
from tests.test_kernels_compile import Recorder, matrix  # noqa: E402

ROWS = {"rows_forward_kernel", "rows_backward_kernel", "clip_rows_forward_kernel"}
SEGMENTS = {"discounted_sums_kernel", "bounds_kernel", "sums_kernel", "totals_kernel", "moments_kernel"}


class NoDevice:
    """What the launcher asks a driver before it compiles."""

    launcher_cls = None

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind):
        return kind


@pytest.fixture
def launched(monkeypatch):
    """(kernel, compiled kernel, what the imitation would compile) of each launch."""
    seen, run = [], JITFunction.run

    def compiled(self, *args, grid, warmup, **keywords):
        name, imitated = self.fn.__name__, None
        if name in ROWS:
            recorder = Recorder(self)
            recorder[grid](*args, **keywords)
            imitated = ASTSource(self, *recorder.specialisation())
        found = run(self, *args, grid=grid, warmup=True, **keywords)
        seen.append((name, found, imitated))
        return found

    monkeypatch.setattr(JITFunction, "run", compiled)
    monkeypatch.setattr(driver, "_active", NoDevice())
    return seen


def launch_rows(rows: int, V: int, dtype: torch.dtype, *, softcap: bool = False, odd: bool = False) -> None:
    """Every launcher over logits (rows, V), with every tensor that may be left out given and left out."""
    x, ids = matrix(rows, V, dtype, odd=odd), torch.zeros(rows, dtype=torch.int64)
    one = torch.ones(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    tanh_in = 1 / 30 if softcap else 0.0
    for squares in (True, False):
        rows_forward.rows_forward(x, ids, one, tanh_in, squares=squares)
    for source in (None, ids):
        out = torch.empty(rows, V, dtype=torch.bfloat16 if dtype == torch.float32 else dtype)
        rows_backward.rows_backward(x, ids, one, tanh_in, one.new_ones(rows, 2), one, one, one, out, source)
    for old, ref in ((None, None), (one, None), (None, one), (one, one)):
        beta = 0.0 if ref is None else 0.1
        clip_loss.clip_rows_forward(x, ids, one, tanh_in, one, old, ref, one, low=0.2, high=0.3, kl_coefficient=beta)
    bounds = {"dual": 3.0, "ceiling": 5.0, "log_ratio_low": -20.0, "log_ratio_high": 20.0, "kl_input_clip": 20.0, "kl_output_clip": 10.0}
    clip_loss.clip_rows_forward(
        x, ids, one, tanh_in, one, one, one, one, low=0.2, high=0.2, kl_coefficient=0.1, entropy_coefficient=1.0, **bounds
    )


def launch_segments(rows: int) -> None:
    values, places, counted = (
        torch.zeros(rows, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows, dtype=torch.bool),
    )
    segments_scan.discounted_sums(values, places, [0.5 ** (2**power) for power in range(6)])
    for ddof in (0, 1):
        segments_moments.segment_moments(values, counted, places, places, ddof)
    segments_moments.segment_totals(values, counted, places, places)


def kinds(launched) -> set[str]:
    return {compiled.hash for _, compiled, _ in launched}


def as_imitated(launched) -> None:
    for name, compiled, imitated in launched:
        assert compiled.src.signature == imitated.signature, name
        assert compiled.src.constants == imitated.constants, name
        assert {place: found for place, found in compiled.src.attrs.items() if found} == imitated.attrs, name
        assert compiled.metadata.enable_fp_fusion is False, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_launch_compiles_what_is_compiled_ahead_of_time(dtype, launched):
    for V, odd, softcap in ((1008, False, False), (1003, False, True), (1008, True, False)):
        launch_rows(5, V, dtype, odd=odd, softcap=softcap)
    as_imitated(launched)
    assert {name for name, *_ in launched} == ROWS


def test_every_launch_of_the_segments(launched):
    for rows in (1, 16, 5000):
        launch_segments(rows)
    assert {name for name, *_ in launched} == SEGMENTS
    assert all(compiled.metadata.enable_fp_fusion is False for _, compiled, _ in launched)
    assert all(compiled.src.signature.get("rows", "i64") == "i64" for _, compiled, _ in launched), (
        "a length that is a constant compiles anew"
    )


def test_new_lengths_compile_nothing_new(launched):
    """Batches and vocabularies of other sizes, and one row, where Triton would make a constant of a 1 that it is given as a number."""
    launch_rows(5, 1008, torch.bfloat16)
    first = kinds(launched)
    for rows, V in ((1, 1008), (16, 1008), (33, 2064), (4096, 32)):
        launch_rows(rows, V, torch.bfloat16)
    as_imitated(launched)
    assert kinds(launched) == first


def test_a_schedule_compiles_nothing_new(launched):
    """Coefficients, bounds and temperatures are numbers at run time, 0 and 1 among them."""
    x, ids, one = matrix(4, 1008, torch.bfloat16), torch.zeros(4, dtype=torch.int64), torch.ones(4)
    for low, beta, entropy in ((0.2, 0.1, 0.0), (0.3, 1.0, 1.0), (1.0, 0.001, 16.0)):
        clip_loss.clip_rows_forward(
            x, ids, one, 0.0, one, one, one, one, low=low, high=low, kl_coefficient=beta, entropy_coefficient=entropy
        )
    assert len(kinds(launched)) == 1 and len(launched) == 3
