"""The model of the GPU path: its arithmetic by hand, its work from the real walk, its instructions from compiled kernels."""

import csv
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from bench import machine_code, model, plots, records, roofline, shapes, walk
from bench.model import Assumptions, Part
from bench.walk import Work
from gigpo_fast.kernels import rows_forward
from gigpo_fast.ops import gemm, passes

PART = Part("a part", "sm_90", processors=10, clock=1e9, bandwidth=1e12, gemm=1e14, source="made up")
GIVEN = Assumptions(lanes=100, rows_share=0.5, exposed=0.25, launch=1e-6, waves=0.8)


def with_tools() -> None:
    try:
        machine_code.tools()
    except machine_code.Missing as missing:
        pytest.skip(str(missing))


# the arithmetic, by hand


def test_a_product_takes_its_operations_its_last_wave_and_what_its_fp32_result_leaves_open():
    # 640 x 512 is ten tiles of 128 x 256, one full wave of ten processors
    product = Work("mm", read=0, written=4 * 640 * 512, m=640, n=512, k=1000)
    found = model.time_of([product], PART, GIVEN)
    assert found["products"] == pytest.approx(2 * 640 * 512 * 1000 / 1e14)
    assert found["waves"] == pytest.approx(0, abs=1e-12)
    assert found["fp32 results"] == pytest.approx(0.25 * 2 * 640 * 512 / 1e12)
    assert sum(found.values()) == pytest.approx(found["products"] + found["fp32 results"])


def test_a_wave_that_is_half_full_costs_its_time_but_no_more_than_the_bound():
    assert model.fullness(1280, 256, 10, 0.8) == pytest.approx(1.0)
    # 12 tiles of 128 x 256 would take two waves of ten, 24 of 128 x 128 three at 0.88 of the speed; 16 of 192 x 128 take two at 0.96
    assert model.fullness(1536, 256, 10, 0.1) == pytest.approx(max(12 / 20, 24 / 30 * 0.88, 16 / 20 * 0.96))
    assert model.fullness(1, 1, 10, 0.8) == 0.8


def test_a_row_kernel_takes_the_longer_of_memory_and_instructions():
    by_memory = Work("rows", read=3e9, written=1e9, instructions=1e9)
    assert model.row_kernel(by_memory, PART, GIVEN) == (pytest.approx(4e9 / 1e12 / 0.5), "memory")
    by_issue = Work("rows", read=3e6, written=0, instructions=5e9)  # of 10 processors, 100 a clock, 1e9 clocks a second
    assert model.row_kernel(by_issue, PART, GIVEN) == (pytest.approx(5e9 / 1e12 / 0.5), "issue")
    assert model.time_of([by_memory, by_issue], PART, GIVEN)["row kernels"] == pytest.approx((4e-3 + 5e-3) / 0.5)


def test_other_operations_take_their_bytes_or_a_launch():
    found = model.time_of([Work("add_", 2e9, 1e9, matrix=True), Work("sum", 40, 4), Work("cat", 2e6, 2e6)], PART, GIVEN)
    assert found["passes over (V, H)"] == pytest.approx(3e-3)
    assert found["other operations"] == pytest.approx(1e-6 + 4e-6)


def test_the_bare_products_are_three_and_idle_rows_take_one_of_them():
    sizes = (2560, 1280, 2560)  # whole waves in all three, and in half of the rows
    everything = model.bare(sizes[0], sizes[0], *sizes[1:], PART, GIVEN)
    half = model.bare(sizes[0], sizes[0] // 2, *sizes[1:], PART, GIVEN)
    assert everything == pytest.approx(3 * 2 * math.prod(sizes) / 1e14, rel=1e-9)
    assert half == pytest.approx(2 / 3 * everything, rel=1e-9)


def test_inputs_can_be_replaced_by_name_and_no_others():
    parts, given = model.changed(["H200.gemm=8e14", "rows_share=0.9"])
    assert parts["H200"].gemm == 8e14 and "H200.gemm=8e14 as given" in parts["H200"].source and given.rows_share == 0.9
    assert model.PARTS["H200"].gemm != 8e14 and parts["H100"] == model.PARTS["H100"]
    for wrong in ("H900.gemm=1", "speed=1", "H200.gemm=fast"):
        with pytest.raises(SystemExit, match="known are PART.processors"):
            model.changed([wrong])


def test_every_input_has_a_source():
    for part in model.PARTS.values():
        assert all(f"{name}: " in part.source for name in ("bandwidth", "gemm", "clock"))
        assert all(word in part.source for word in ("assumed", "data sheet"))


# instructions are counted, not assumed


SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   LDG.E.128 R4, [R2] ;
        /*0040*/                   MUFU.EX2 R5, R4 ;
        /*0050*/                   FMUL R5, R5, R4 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
"""


def test_the_loop_that_reads_is_counted():
    assert machine_code.instructions(SASS, 2) == 2.0
    assert machine_code.instructions(SASS.replace("LDG.E.128", "MOV"), 2) == 0.0


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_counts_come_from_the_compiled_kernels(architecture, monkeypatch):
    """A kernel that does more an element counts more: fp32 softcap against none, squares against none, unaligned rows against aligned ones."""
    with_tools()
    empty = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731

    def forward(V=4096, **options):
        given = empty(4, V), empty(4, dtype=torch.int64), empty(4), options.pop("tanh_in", 0.0)
        return lambda: rows_forward.rows_forward(*given, **options)

    count = lambda call: machine_code.launches_of(architecture, call)[0].instructions  # noqa: E731
    plain = count(forward(squares=False))
    assert 5 < plain < count(forward(squares=True)) < count(forward(squares=True, tanh_in=0.1))
    assert count(forward(V=4001, squares=False)) > plain
    monkeypatch.setattr(machine_code, "instructions", lambda text, elements: 1000 * len(text.splitlines()))
    machine_code._counted.cache_clear()
    assert count(forward(squares=False)) > 1000, "what is disassembled is what is counted"
    machine_code._counted.cache_clear()


def test_recording_leaves_triton_as_it_was():
    with_tools()
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    before = JITFunction.run, driver._active
    with pytest.raises(ZeroDivisionError), machine_code.recorded("sm_90"):
        raise ZeroDivisionError
    assert (JITFunction.run, driver._active) == before


def test_without_the_tools_it_says_what_is_missing(capsys, monkeypatch):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-m", "bench.roofline", "--parts", "H200"], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "TRITON_INTERPRET=1 replaces the compiler: unset it" in ran.stderr and not ran.stdout
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(machine_code.Missing, match="triton is not installed.*pip install triton"):
        machine_code.tools()


# the work is that of the walk


SIZES = {"hidden": 64, "vocabulary": 4096, "architecture": "sm_90"}


def _work(tokens=64, backward=64, chunk=32):
    weight = torch.empty(SIZES["vocabulary"], SIZES["hidden"], dtype=torch.bfloat16, device="meta")
    return walk.fused(tokens, backward, budget=chunk * passes._bytes_per_row(weight), **SIZES)


def test_the_work_of_two_chunks_is_three_products_and_two_kernels_each():
    with_tools()
    work, most = _work()
    H, V = SIZES["hidden"], SIZES["vocabulary"]
    assert most == 32
    assert [(one.m, one.n, one.k) for one in work if one.m] == [(32, V, H), (V, H, 32), (32, H, V)] * 2
    kernels = [one for one in work if one.instructions]
    assert [one.name for one in kernels] == ["clip_rows_forward_kernel", "rows_backward_kernel"] * 2
    assert [(one.read, one.written) for one in kernels] == [(4 * 32 * V, 0), (4 * 32 * V, 2 * 32 * V)] * 2


def test_idle_tokens_have_a_forward_alone():
    with_tools()
    work, _ = _work(backward=32)
    assert [one.name for one in work if one.instructions] == ["clip_rows_forward_kernel", "rows_backward_kernel", "clip_rows_forward_kernel"]
    assert sum(bool(one.m) for one in work) == 4


def test_a_change_of_the_walk_changes_the_model(monkeypatch):
    """One pass over d_weight more a chunk: exactly its bytes more."""
    with_tools()
    before, _ = _work()
    real, V_H = gemm.add_d_weight, SIZES["hidden"] * SIZES["vocabulary"]
    monkeypatch.setattr(passes, "add_d_weight", lambda *given: real(*given).add_(1))
    after, _ = _work()
    passes_over = lambda work: sum(one.read + one.written for one in work if one.matrix and not one.m)  # noqa: E731
    assert passes_over(after) - passes_over(before) == 2 * 2 * 4 * V_H


# the whole, and records beside it


@pytest.fixture
def one_shape(monkeypatch):
    with_tools()
    shape = shapes.Shape("8k m1 a1", 8, 32, 64, 4096, dtype="bfloat16")
    monkeypatch.setitem(shapes.TABLES, "gpu", {shapes.LINEAR: (shape,), shapes.LOGITS: (shape,)})
    return shape


def test_the_command_prints_parts_and_writes_them_as_a_model(one_shape, tmp_path, capsys):
    assert roofline.main(["--csv", str(tmp_path / "model.csv"), "--records", str(tmp_path / "none.csv")]) == 0
    out = capsys.readouterr().out
    assert out.count("MODEL, not measured") == 2 and "records beside" not in out
    with (tmp_path / "model.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["part"], row["budget"]) for row in rows] == [
        ("model", part, budget) for part in model.PARTS for budget in model.BUDGETS
    ]
    for row in rows:
        assert float(row["seconds"]) == pytest.approx(sum(float(row[f"{kind} s"]) for kind in model.KINDS), rel=1e-4)
        assert float(row["share"]) == pytest.approx(float(row["bare"]) / float(row["seconds"]), rel=1e-4) and float(row["share"]) < 1
    with pytest.raises(SystemExit):
        roofline.main(["--parts", "T4"])


def test_records_stand_beside_the_model_and_misses_are_marked(one_shape, tmp_path, capsys):
    predicted = model.predict(one_shape, "default", model.PARTS["H200"], Assumptions())
    where = records.Machine("2026-01-02 03:04", "abc", "NVIDIA H200", 16, "2.11.0", "3.6.0", "none")
    sizes = (shapes.LINEAR, "8k m1 a1", 256, 64, 4096, "bfloat16", 1.0, 1.0, False)
    row = records.Record(*sizes, "bare GEMMs", "2.11.0", 0.0, 1.5 * predicted.seconds, 0.4, None, None, None, None, None)
    other = where._replace(device="NVIDIA GH200 480GB")
    records.append(tmp_path / "gpu.csv", where, [row, row._replace(peer="eager")])
    assert roofline.main(["--parts", "H200", "--records", str(tmp_path / "gpu.csv")]) == 0
    (line,) = [line for line in capsys.readouterr().out.split("records beside the model:")[1].splitlines() if line.startswith("H200")]
    assert "+50%" in line and "40%" in line and line.endswith("<- to be explained")
    (found,) = model.beside([(where, row._replace(ours_seconds=1.05 * predicted.seconds)), (other, row)])
    assert found.off == pytest.approx(0.05) and "explained" not in roofline.beside_table([found])[1]
    pytest.importorskip("matplotlib")
    names = [path.name for path in plots.draw(tmp_path / "gpu.csv", tmp_path)]
    assert "gpu-linear_policy_loss-model.png" in names and all((tmp_path / name).stat().st_size > 1000 for name in names)


def test_the_names_of_devices():
    named = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200", "NVIDIA H100 PCIe", "NVIDIA GH200 480GB", "Tesla T4")
    parts = [model.part_of(name) for name in named]
    assert [part and part.name for part in parts] == ["H100", "H200", "B200", None, None, None]


# the page


PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "performance.md"


@pytest.mark.slow
def test_the_page_says_what_the_model_says():
    """Within a point and a tenth: another Triton may count an instruction more. Otherwise: python -m bench.roofline --page docs/performance.md"""
    with_tools()
    text = PAGE.read_text()
    made = roofline.with_tables(text, roofline.page_tables(model.PARTS.values(), Assumptions()))
    numbers = r"-?\d+(?:\.\d+)?"
    assert re.sub(numbers, "#", made) == re.sub(numbers, "#", text)
    for wanted, written in zip(re.findall(numbers, made), re.findall(numbers, text)):
        assert float(written) == pytest.approx(float(wanted), abs=1.01)


def test_the_page_marks_every_table_as_a_model_and_holds_no_other_number_of_it():
    text = PAGE.read_text()
    assert text.count("<!-- model: ") == 3 == text.count("<!-- end -->")
    with pytest.raises(SystemExit, match="has 0 places for the table 'shares'"):
        roofline.with_tables("nothing", {"shares": ["| 1 |"]})
    outside = re.sub(r"<!-- model: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert not re.search(r"\d ?%|\d+(\.\d+)? (ms|TB/s|TFLOP)", outside), "numbers of the model stand in its tables, which the script writes"
