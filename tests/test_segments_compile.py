"""The segment kernels, compiled ahead of time for every architecture, without a GPU.

Each launcher runs with recorders in its kernels' places, so what is compiled is exactly what it would launch. What must hold: no spill, 64-bit
offsets, atomics on integers only (they are what makes the sums independent of the order of programs), and no product fused into a sum.
"""

import re

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton kernels need triton")

from gigpo_fast.kernels import segments_moments, segments_scan  # noqa: E402
from tests.test_kernels_compile import POINTERS as NUMBERS  # noqa: E402
from tests.test_kernels_compile import TARGETS, Recorder, resources  # noqa: E402

KERNELS = {"discounted_sums_kernel": segments_scan} | dict.fromkeys(
    ["bounds_kernel", "sums_kernel", "totals_kernel", "moments_kernel"], segments_moments
)
POINTERS = NUMBERS | {torch.bool: "*u1"}
ADDITIONS = {"bounds_kernel": 1, "sums_kernel": 2}  # atomic additions of a tile


class Launches(Recorder):
    """Keeps every launch; arguments with a declared type have that type whatever their value."""

    def __init__(self, kernel):
        super().__init__(kernel)
        self.all = []

    def __getitem__(self, grid):
        launch = super().__getitem__(grid)

        def keep(*args, **options):
            launch(*args, **options)
            self.all.append((self.grid, self.arguments, self.options))

        return keep

    def specialisation(self):
        """(signature, constexprs, attributes) as Triton's launcher derives them."""
        signature, constants, divisible = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = POINTERS[value.dtype] if tensor else parameter.annotation_type
            number = value.data_ptr() if tensor else value
            if isinstance(number, int) and number % 16 == 0 and not parameter.do_not_specialize:
                divisible[(index,)] = [["tt.divisibility", 16]]
        assert "" not in signature.values(), (
            f"give every number of {self.kernel} a type: Triton reads 1 as a constant and floats as float32"
        )
        return signature, constants, divisible

    def compiled(self, arch):
        """(arguments, compiled kernel) of every launch."""
        for _, arguments, options in self.all:
            self.arguments, self.options = arguments, options
            yield arguments, self.compile(arch)


def record(monkeypatch, rows=5000, powers=6):
    """{kernel: its launches} of both launchers for one batch."""
    found = {}
    with monkeypatch.context() as patch:
        for name, module in KERNELS.items():
            found[name] = Launches(getattr(module, name))
            patch.setattr(module, name, found[name])
        values, places = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
        segments_scan.discounted_sums(values, places, [0.5 ** (2**i) for i in range(powers)])
        segments_moments.segment_moments(values, torch.ones(rows, dtype=torch.bool), places, places, 1)
        segments_moments.segment_totals(values, torch.ones(rows, dtype=torch.bool), places, places)
    return found


def faults(name, compiled, tmp_path):
    """(table row, broken promises) of one compiled kernel."""
    registers, stack, local = resources(compiled, tmp_path)
    ttir = compiled.asm["ttir"]
    atomics = re.findall(r"tt\.atomic_rmw (\w+), (\w+), .*?, (tensor<\S+?>)[,)]", ttir)
    additions = sum(kind == "add" for kind, *_ in atomics)
    checks = {
        "spills": stack == 0 and local == 0,
        "more registers than two programs a core share": registers <= 255 // 2,
        "a grid axis other than 0": set(re.findall(r"tt\.get_program_id (\w)", ttir)) == {"x"},
        "row offsets in 32 bits": "arith.extsi" in ttir and not re.search(r"tt\.addptr .*tensor<\d+xi32>", ttir),
        "float atomics": "fadd" not in ttir and not re.search(r"tt\.atomic_rmw f", ttir) and "atomic_cas" not in ttir,
        "atomic additions": additions == ADDITIONS.get(name, 0),
        "loads without a value for masked lanes": not re.search(r"tt\.load %\S+, %\S+ :", ttir),
        "single precision": "f32" not in ttir,
    }
    if "ptx" in compiled.asm:
        ptx = compiled.asm["ptx"]
        checks["products fused into sums"] = not re.search(r"\bfma\.rn\.f64|\b(mul|add|sub)\.f64\b", ptx)
        checks["float atomics in the PTX"] = not re.search(r"\b(atom|red)\S*\.f(32|64)\b", ptx)
        checks["approximate roots or quotients"] = not re.search(r"\b(sqrt|div|rcp|rsqrt)\.(approx|full)", ptx)
    row = [f"{name} registers={registers} spilled={stack}+{local} shared={compiled.metadata.shared} atomics={len(atomics)}"]
    return row, [fault for fault, held in checks.items() if not held]


@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_compiles_as_designed(arch, monkeypatch, tmp_path):
    table, broken = [], []
    for name, launches in record(monkeypatch).items():
        for _, compiled in launches.compiled(arch):
            row, found = faults(name, compiled, tmp_path)
            table.append("  ".join([arch, *row, *(f"FAULT: {fault}" for fault in found)]))
            broken += found
    assert not broken, "\n".join(table)
    print("\n".join(table))  # shown with pytest -s


def test_the_gates_see_too_large_a_tile(monkeypatch, tmp_path):
    """A tile that fills the registers must be reported, or the gates above mean nothing."""
    monkeypatch.setattr(segments_moments.segment_moments, "__kwdefaults__", {"block": 2048})
    launches = record(monkeypatch)["sums_kernel"]
    launches.all = launches.all[1:2]  # the squares
    [(_, compiled)] = launches.compiled("sm_90")
    assert "more registers than two programs a core share" in faults("sums_kernel", compiled, tmp_path)[1]


def test_the_gates_see_fusion(monkeypatch, tmp_path):
    launches = record(monkeypatch)["discounted_sums_kernel"]
    launches.all = [(grid, arguments, options | {"enable_fp_fusion": True}) for grid, arguments, options in launches.all[:1]]
    [(_, compiled)] = launches.compiled("sm_90")
    assert "products fused into sums" in faults("discounted_sums_kernel", compiled, tmp_path)[1]


def test_new_lengths_and_discounts_compile_nothing_new(monkeypatch):
    for name in KERNELS:
        kinds = set()
        for rows, powers in ((5000, 12), (4096, 1), (1, 3), (70_001, 16)):
            launches = record(monkeypatch, rows, powers)[name]
            for _, arguments, _ in launches.all:
                launches.arguments = arguments
                kinds.add(repr(launches.specialisation()))
        assert len(kinds) == (2 if name == "sums_kernel" else 1), kinds


def test_four_passes_a_launch_on_the_first_grid_axis(monkeypatch):
    launches = record(monkeypatch, rows=1_000_000, powers=14)
    grids = {name: [grid for grid, *_ in kernel.all] for name, kernel in launches.items()}
    counts = {"discounted_sums_kernel": 4, "bounds_kernel": 2, "sums_kernel": 3, "totals_kernel": 1, "moments_kernel": 1}
    assert grids == {name: [(3907,)] * count for name, count in counts.items()}
    assert [arguments["stride"] for _, arguments, _ in launches["discounted_sums_kernel"].all] == [1, 16, 256, 4096]
