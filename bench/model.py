"""The model of the GPU path: inputs with their sources, and the arithmetic from work to seconds. Nothing here is measured.

The work (products, kernels, passes over memory) is that of the real walk (walk.py), instructions are counted in the compiled kernels
(machine_code.py); the rest is the inputs below. Assumed ones are there to be replaced by a record.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bench import walk
from bench.records import Machine, Record
from bench.shapes import LINEAR, TABLES, Shape
from bench.walk import Work


class Part(NamedTuple):
    """A GPU. Rates are what a long kernel reaches, not the data sheet's."""

    name: str
    architecture: str
    processors: int
    clock: float  # Hz, under load
    bandwidth: float  # bytes a second, of a copy
    gemm: float  # operations a second, of large bf16 products
    source: str


PARTS = {
    part.name: part
    for part in (
        Part("H100", "sm_90", 132, 1.75e9, 3.0e12, 728e12,
             "SXM. bandwidth: assumed, 90 % of the data sheet's 3.35e12. gemm: reported for the bare products of a head in TRL's issues, "
             "of the data sheet's 989e12. clock: assumed"),
        Part("H200", "sm_90", 132, 1.75e9, 4.3e12, 770e12,
             "SXM. bandwidth: assumed, 90 % of the data sheet's 4.8e12. gemm: assumed, 78 % of the data sheet's 989e12. clock: assumed"),
        Part("B200", "sm_100", 148, 1.75e9, 7.0e12, 1690e12,
             "bandwidth: assumed, 88 % of the data sheet's 8e12. gemm: assumed, 75 % of the data sheet's 2250e12. clock: assumed"),
    )
}  # fmt: skip


class Assumptions(NamedTuple):
    """What the parts have in common."""

    lanes: float = 128.0  # instructions of threads that a processor issues a clock: four schedulers, 32 threads each (CUDA's guide)
    rows_share: float = 0.88  # of its roof that a row kernel reaches: assumed
    exposed: float = 0.5  # of a product's memory beyond bf16 results that is not hidden behind its arithmetic: assumed
    launch: float = 2.2e-6  # seconds that a small kernel takes at least: assumed
    waves: float = 0.80  # a product loses no more than to this by a last wave that is not full: assumed of cuBLAS's split-K


# (rows, columns) of a product's tile, and its speed against the best: assumed.
TILES = {(128, 256): 1.0, (256, 128): 1.0, (128, 192): 0.96, (192, 128): 0.96, (128, 128): 0.88, (256, 192): 0.97}
BUDGETS = {"1 GiB": 1 << 30, "2 GiB": 2 << 30, "default": None}  # of chunk_bytes
MISS = 0.1  # a prediction that is off by more is to be explained
BF16 = 2  # bytes of an element of the bare products' results
KINDS = ("products", "waves", "fp32 results", "row kernels", "passes over (V, H)", "other operations")


class Prediction(NamedTuple):
    """Seconds of one shape on one part, and of what they consist."""

    part: str
    shape: str
    tokens: int  # trained
    backward: int  # of them with a gradient
    hidden: int
    vocabulary: int
    budget: str
    chunk_rows: int
    seconds: float
    bare: float
    kinds: dict[str, float]

    @property
    def share(self) -> float:
        """Of the time, what the bare products alone would take."""
        return self.bare / self.seconds


def fullness(rows: int, columns: int, processors: int, least: float) -> float:
    """Which share of the best speed a product of this result reaches, by the last wave of its tiles."""
    best = 0.0
    for (height, width), speed in TILES.items():
        waves = math.ceil(math.ceil(rows / height) * math.ceil(columns / width) / processors)
        best = max(best, rows * columns / (height * width) / (waves * processors) * speed)
    return min(1.0, max(best, least))


def row_kernel(work: Work, part: Part, given: Assumptions) -> tuple[float, str]:
    """(seconds, what bounds it) of one launch: its bytes or its instructions, whichever takes longer."""
    memory, issue = (work.read + work.written) / part.bandwidth, work.instructions / (part.processors * given.lanes * part.clock)
    return max(memory, issue) / given.rows_share, "memory" if memory >= issue else "issue"


def time_of(work: Iterable[Work], part: Part, given: Assumptions) -> dict[str, float]:
    """Seconds by kind."""
    total = dict.fromkeys(KINDS, 0.0)
    for one in work:
        if one.m:
            arithmetic = 2 * one.m * one.n * one.k / part.gemm
            total["products"] += arithmetic
            total["waves"] += arithmetic / fullness(one.m, one.n, part.processors, given.waves) - arithmetic
            total["fp32 results"] += given.exposed * (one.read + one.written - BF16 * one.m * one.n) / part.bandwidth
        elif one.instructions:
            total["row kernels"] += row_kernel(one, part, given)[0]
        else:
            kind = "passes over (V, H)" if one.matrix else "other operations"
            total[kind] += max((one.read + one.written) / part.bandwidth, given.launch)
    return total


def bare(tokens: int, backward: int, hidden: int, vocabulary: int, part: Part, given: Assumptions) -> float:
    """Seconds of the three products alone, over all rows at once."""
    products = ((tokens, vocabulary, hidden), (vocabulary, hidden, backward), (backward, hidden, vocabulary))
    full = [fullness(m, n, part.processors, given.waves) for m, n, _ in products]
    return sum(2 * m * n * k / part.gemm / share for (m, n, k), share in zip(products, full))


def predict(shape: Shape, budget: str, part: Part, given: Assumptions) -> Prediction:
    """The fused clipped loss at one shape: forward and backward."""
    tokens = shape.scored
    backward = tokens - shape.idle_rows * (tokens // shape.rows)
    work, most = _fused(tokens, backward, shape.hidden, shape.vocabulary, part.architecture, BUDGETS[budget])
    kinds = time_of(work, part, given)
    least = bare(tokens, backward, shape.hidden, shape.vocabulary, part, given)
    sizes = (tokens, backward, shape.hidden, shape.vocabulary)
    return Prediction(part.name, shape.name, *sizes, budget, most, sum(kinds.values()), least, kinds)


_fused = functools.cache(walk.fused)
logits_work = functools.cache(walk.logits)


def predictions(parts: Iterable[Part], given: Assumptions, budgets: Iterable[str] = tuple(BUDGETS)) -> Iterator[Prediction]:
    """Every shape of the GPU table of the fused loss whose head is trained."""
    for part in parts:
        for shape in TABLES["gpu"][LINEAR]:
            if not shape.frozen:
                yield from (predict(shape, budget, part, given) for budget in budgets)


class Beside(NamedTuple):
    """A record and what the model says of it."""

    prediction: Prediction
    seconds: float  # measured
    share: float  # measured

    @property
    def off(self) -> float:
        """How much longer it took than predicted, as a share of the prediction."""
        return self.seconds / self.prediction.seconds - 1


def part_of(device: str, parts: dict[str, Part] = PARTS) -> Part | None:
    """The part that torch's name of a device means; a GH200, or a card of another form, is none of them."""
    named = [part for name, part in parts.items() if re.search(rf"\b{name}\b", device)]
    return named[0] if named and not re.search(r"PCIe|NVL", device) else None


def beside(rows: Iterable[tuple[Machine, Record]], parts: dict[str, Part] = PARTS, given: Assumptions = Assumptions()) -> list[Beside]:  # noqa: B008
    """Records of the bare products of the fused loss on a known part, with the prediction for the same shape."""
    found, known = [], {shape.name: shape for shape in TABLES["gpu"][LINEAR] if not shape.frozen}
    for where, row in rows:
        part, shape = part_of(where.device, parts), known.get(row.shape)
        if part is None or shape is None or row.problem != LINEAR:
            continue
        if row.peer == ("bare GEMMs, idle rows forward only" if shape.active < 1 else "bare GEMMs"):
            found.append(Beside(predict(shape, "default", part, given), row.ours_seconds, row.ratio))
    return found


def changed(settings: list[str]) -> tuple[dict[str, Part], Assumptions]:
    """The inputs with settings such as "H200.gemm=8e14" or "launch=3e-6"."""
    parts, given = dict(PARTS), Assumptions()
    for setting in settings:
        name, _, number = setting.partition("=")
        part, _, field = name.rpartition(".")
        try:
            value = {field: float(number)}
            if part:
                parts[part] = parts[part]._replace(**value, source=f"{parts[part].source}; {setting} as given")
            else:
                given = given._replace(**value)
        except (KeyError, ValueError):
            fields = [f"PART.{name}" for name in ("processors", "clock", "bandwidth", "gemm")]
            raise SystemExit(f"--set {setting}: known are {', '.join([*fields, *Assumptions._fields])}, with a number") from None
    return parts, given
