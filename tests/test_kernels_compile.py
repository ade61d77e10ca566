"""Every configuration of the row kernels, shipped or a candidate of the autotuner, compiled ahead of time for every architecture, without a GPU.

Each launcher is called with a recorder in the kernel's place, so what is compiled is exactly what it would launch. The compiler's output
must hold what the design counts on: no spill, 128-bit loads and stores, 64-bit row offsets, one exponential an element, no fp64, no float
atomics, and no product fused into the subtraction of the row's maximum (the two passes over a row must see the same rounded number).
"""

import itertools
import os
import pathlib
import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton kernels need triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gigpo_fast.kernels import clip_loss, configs, rows_backward, rows_forward, scale  # noqa: E402

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a program may use
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}
POINTERS |= {torch.int64: "*i64", torch.int32: "*i32"}
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Recorder:
    """Stands in for a kernel: keeps the arguments of a launch instead of launching."""

    def __init__(self, kernel):
        self.kernel, self.arg_names = kernel, kernel.arg_names

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.grid = grid
            self.arguments = dict(zip(self.arg_names, args, strict=False))
            self.arguments |= {name: options.pop(name) for name in self.arg_names if name in options}
            self.options = options

        return launch

    def specialisation(self):
        """(signature, constexprs, attributes) as Triton's launcher derives them from the arguments: one compiled kernel for each."""
        signature, constants, divisible = {}, {}, {}
        for index, (name, value) in enumerate(self.arguments.items()):
            declared = self.kernel.params[index].is_constexpr
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
            elif declared or value is None or (type(value) is int and value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"
            if type(number) is int and number % 16 == 0 and name not in constants:
                divisible[(index,)] = [["tt.divisibility", 16]]
        return signature, constants, divisible

    def compile(self, arch):
        signature, constants, divisible = self.specialisation()
        return triton.compile(ASTSource(self.kernel, signature, constants, divisible), target=TARGETS[arch], options=self.options)


def matrix(rows, V, dtype, *, odd=False):
    """(rows, V); odd: its rows start anywhere, V apart or not."""
    return torch.empty(rows, V + odd, dtype=dtype)[:, odd:]


def record(monkeypatch, kernel, arch, *, rows=2, V=151936, dtype=torch.float32, softcap=False, config=None, **case):
    """Call one launcher on (rows, V) logits as on `arch` and return what it would launch.

    Other keys: out_dtype, source, squares, on_policy, odd_logits, odd_out.
    """
    logits, ids = matrix(rows, V, dtype, odd=case.get("odd_logits", False)), torch.zeros(rows, dtype=torch.int64)
    values = torch.ones(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    old, ref, beta = (None, None, 0.0) if case.get("on_policy") else (values, values, 0.1)
    tanh_in = 1 / 30 if softcap else 0.0
    module = {"rows_forward": rows_forward, "rows_backward": rows_backward, "clip_rows_forward": clip_loss}[kernel]
    recorder = Recorder(getattr(module, f"{kernel}_kernel"))
    with monkeypatch.context() as patch:
        patch.setattr(configs, "architecture", lambda device: arch)
        patch.setattr(module, f"{kernel}_kernel", recorder)
        if kernel == "rows_forward":
            rows_forward.rows_forward(logits, ids, values, tanh_in, squares=case.get("squares", True), config=config)
        elif kernel == "rows_backward":
            out, lse = matrix(rows, V, case.get("out_dtype", dtype), odd=case.get("odd_out", False)), values.new_ones(rows, 2)
            source = ids if case.get("source") else None
            rows_backward.rows_backward(logits, ids, values, tanh_in, lse, values, values, values, out, source, config=config)
        else:
            options = {"low": 0.2, "high": 0.3, "kl_coefficient": beta, "config": config}
            clip_loss.clip_rows_forward(logits, ids, values, tanh_in, values, old, ref, values, **options)
    return recorder


def cases(arch):
    """Options of `record` for every kernel, dtype, alignment and transform that ships, then for the autotuner's candidates."""
    for softcap, V in itertools.product((False, True), (151936, 50257)):
        common = {"softcap": softcap, "V": V}
        for dtype in (torch.float32, torch.bfloat16):
            yield "rows_forward", {"dtype": dtype, **common}
            yield "rows_forward", {"dtype": dtype, "squares": False, **common}
            yield "rows_backward", {"dtype": dtype, "source": dtype == torch.float32, "out_dtype": torch.bfloat16, **common}
    yield "rows_backward", {"dtype": torch.float32}
    yield "rows_backward", {"dtype": torch.float16}
    yield "rows_forward", {"dtype": torch.float16}
    for dtype, V in itertools.product((torch.float32, torch.bfloat16), (151936, 50257)):
        yield "clip_rows_forward", {"dtype": dtype, "V": V}
    yield "clip_rows_forward", {"dtype": torch.bfloat16, "softcap": True}
    yield "clip_rows_forward", {"dtype": torch.bfloat16, "on_policy": True}
    for odd in ({"odd_logits": True}, {"odd_out": True}, {"odd_logits": True, "odd_out": True}):
        yield "rows_backward", {"dtype": torch.float32, "out_dtype": torch.bfloat16, **odd}
    for kernel in configs.TABLE["sm_90"]:
        yield kernel, {"dtype": torch.float64}
        if arch != "gfx942":  # there a few scalar registers spill
            yield kernel, {"dtype": torch.float64, "V": 50257, "softcap": True}
    yield "rows_forward", {"V": 1}
    for kernel, config in itertools.product(configs.TABLE[arch], configs.OTHERS[arch]):
        yield kernel, {"dtype": torch.float32, "config": config}
        yield kernel, {"dtype": torch.bfloat16, "config": config, "softcap": True}
        yield kernel, {"dtype": torch.float32, "config": config, "V": 50257, "softcap": True}


def resources(compiled, tmp_path):
    """Registers, stack and local bytes a thread (vector registers and spills on AMD)."""
    if "amdgcn" in compiled.asm:
        text, pattern, keys = compiled.asm["amdgcn"], r"\.{}:\s+(\d+)", ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        return [int(re.search(pattern.format(key), text)[1]) for key in keys]
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    text = subprocess.run([CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    return [int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL")]


def faults(kernel, options, arch, recorder, compiled, tmp_path):
    """(table row, list of broken promises) of one compiled kernel."""
    registers, stack, local = resources(compiled, tmp_path)
    constants = recorder.specialisation()[1]
    a_thread = constants["BLOCK"] // (recorder.options["num_warps"] * TARGETS[arch].warp_size)  # elements of a tile
    dtype, aligned = options.get("dtype", torch.float32), options.get("V", 151936) % 16 == 0 and not options.get("odd_logits")
    out_dtype, aligned_out = options.get("out_dtype", dtype), options.get("V", 151936) % 16 == 0 and not options.get("odd_out")
    double = dtype == torch.float64
    warps = recorder.options["num_warps"]
    row = [arch, kernel, *(f"{key}={str(value).removeprefix('torch.')}" for key, value in options.items()), f"registers={registers}"]
    row += [f"spilled={stack}+{local}", f"shared={compiled.metadata.shared}"]
    ttir = compiled.asm["ttir"]
    products = [len(re.findall(rf"arith\.muli .*: {width}\b", ttir)) for width in ("i64", "i32")]  # of a row's number and a stride
    checks = {
        "multiply-adds that the compiler may fuse": recorder.options["enable_fp_fusion"] is False,
        "spills": stack == 0 and local == 0,
        "more registers than two programs of 8 warps share": registers <= 128 or double,
        "more shared memory than the architecture has": compiled.metadata.shared <= SHARED_MEMORY[arch],
        "a tile exchanged through shared memory": compiled.metadata.shared <= 4096 or options.get("odd_out", False),
        "a row offset in 32 bits": products[0] >= (2 if kernel == "rows_backward" else 1) and products[1] == 0,
        "a grid axis other than 0": set(re.findall(r"tt\.get_program_id (\w)", ttir)) == {"x"},
        "atomics": "atomic" not in ttir,
        "double precision in a single-precision kernel": double or "f64" not in ttir,
    }
    if "ptx" in compiled.asm:
        ptx = compiled.asm["ptx"]
        exponentials, vector_loads = ptx.count("ex2.approx"), len(re.findall(r"ld\.global\S*\.v4\.b32", ptx))
        row += [f"ex2={exponentials}/{a_thread}", f"vector_loads={vector_loads}"]
        if not double:
            checks["loads narrower than 128 bits"] = vector_loads >= a_thread * dtype.itemsize // 16 or not aligned
            vector_stores = len(re.findall(r"st\.global\S*\.v4\.b32", ptx))
            wanted = a_thread * out_dtype.itemsize // 16 if kernel == "rows_backward" and aligned and aligned_out else 0
            checks["stores narrower than 128 bits"] = vector_stores >= wanted
            checks["fp64 instructions"] = ".f64" not in ptx
            each = 2 if options.get("softcap") else 1  # tanh costs one more
            checks["more than one exponential an element"] = exponentials <= each * a_thread + 6
            at_the_end = 4 * (5 + warps.bit_length() - 1)  # four sums and maxima of a row: within a warp, then over the warps
            checks["exchanges between threads inside the loop"] = ptx.count("shfl.sync") <= at_the_end
        checks["no barrier between reading the target and writing"] = "bar.sync" in ptx or kernel != "rows_backward"
        checks["operations left open to fusion"] = not re.search(r"\b(mul|add|sub)\.f(32|64)\b", ptx)
        checks["atomics in the PTX"] = not re.search(r"\b(atom|red)\.", ptx)
    return row, [name for name, held in checks.items() if not held]


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_every_configuration_compiles_as_designed(arch, monkeypatch, tmp_path):
    table, broken = [], []
    for kernel, options in cases(arch):
        recorder = record(monkeypatch, kernel, arch, **options)
        row, found = faults(kernel, options, arch, recorder, recorder.compile(arch), tmp_path)
        table.append("  ".join(row + [f"FAULT: {name}" for name in found]))
        broken += found
    assert not broken, "\n".join(table)
    print("\n".join(table))  # shown with pytest -s


def test_the_gates_see_a_spill_and_a_narrow_load(monkeypatch, tmp_path):
    """A tile far too large for its warps must be reported, or the gates above mean nothing."""
    monkeypatch.setitem(configs.TABLE, "sm_90", {"rows_backward": {2: configs.Config(32768, 4, 3)}})
    options = {"dtype": torch.bfloat16, "V": 50257, "softcap": True}
    recorder = record(monkeypatch, "rows_backward", "sm_90", **options)
    _, found = faults("rows_backward", options | {"V": 151936}, "sm_90", recorder, recorder.compile("sm_90"), tmp_path)
    assert "spills" in found and "loads narrower than 128 bits" in found


def test_the_gates_see_a_narrow_store(monkeypatch, tmp_path):
    """Rows of the gradient that start anywhere are written element by element: with the options of aligned rows that is a fault."""
    recorder = record(monkeypatch, "rows_backward", "sm_90", odd_out=True)
    assert faults("rows_backward", {}, "sm_90", recorder, recorder.compile("sm_90"), tmp_path)[1] == ["stores narrower than 128 bits"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_that_nobody_wants_are_not_computed(dtype, monkeypatch):
    """A product and a sum an element less."""
    ptx = {
        wanted: record(monkeypatch, "rows_forward", "sm_90", dtype=dtype, squares=wanted).compile("sm_90").asm["ptx"]
        for wanted in (True, False)
    }
    products = {wanted: len(re.findall(r"mul\.rn\.f32|mul\.f32|fma\.rn\.f32", text)) for wanted, text in ptx.items()}
    assert products[True] - products[False] >= 4096 // (8 * 32)


@pytest.mark.parametrize("kernel", configs.TABLE["sm_90"])
def test_new_lengths_compile_nothing_new(kernel, monkeypatch):
    """Rows and vocabulary sizes are run-time numbers: only their divisibility by 16 is known to the compiler."""
    lengths = ((2, 32000), (1, 32000), (17, 32016), (3, 4096))
    first, *others = (record(monkeypatch, kernel, "sm_90", rows=rows, V=V).specialisation() for rows, V in lengths)
    assert all(other == first for other in others)
    assert record(monkeypatch, kernel, "sm_90", V=32001).specialisation() != first


def test_one_program_a_row_on_the_first_grid_axis(monkeypatch):
    assert record(monkeypatch, "rows_forward", "sm_90", rows=70_000, V=16).grid == (70_000,)


def test_every_table_row_serves_every_kernel_and_element_size():
    for table in configs.TABLE.values():
        assert {kernel: set(sizes) for kernel, sizes in table.items()} == {kernel: {2, 4, 8} for kernel in configs.TABLE["sm_90"]}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("arch", TARGETS)
def test_the_scalar_kernel_compiles_as_designed(arch, dtype, monkeypatch, tmp_path):
    """128-bit loads and stores, 64-bit offsets, no spill, the product in float32 (float64 for float64)."""
    recorder = Recorder(scale.scale_kernel)
    monkeypatch.setattr(scale, "scale_kernel", recorder)
    scale.scale_(torch.empty(1 << 16, dtype=dtype), torch.ones(()))
    compiled = recorder.compile(arch)
    _, *spilled = resources(compiled, tmp_path)
    assert spilled == [0, 0] and "atomic" not in compiled.asm["ttir"]
    assert re.search(r"arith\.muli .*: i64\b", compiled.asm["ttir"])
    wide = "f64" if dtype == torch.float64 else "f32"
    assert re.search(rf"arith\.mulf .*tensor<{scale.BLOCK}x{wide}>", compiled.asm["ttir"])
    if "ptx" in compiled.asm:
        ptx, wanted = compiled.asm["ptx"], scale.BLOCK * dtype.itemsize // 16 // (scale.NUM_WARPS * 32)
        for instruction in ("ld", "st"):
            assert len(re.findall(rf"{instruction}\.global\S*\.v[24]\.b(?:32|64)", ptx)) >= wanted
