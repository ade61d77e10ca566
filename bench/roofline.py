"""The model of the GPU path as tables: predicted time and share of the bare matrix products for each shape and part. Nothing is measured.

python -m bench.roofline                         # every part and shape
python -m bench.roofline --parts H200 --csv model.csv
python -m bench.roofline --set H200.gemm=8e14 --set rows_share=0.9
python -m bench.roofline --page docs/performance.md      # writes the page's tables anew

model.py has the inputs with their sources, and the arithmetic. Records of this machine or others are put beside it where there are any.
"""

import argparse
import csv
import pathlib
import re
import sys
from collections.abc import Iterable

import torch

from bench import machine_code, records
from bench.model import (
    BUDGETS,
    KINDS,
    MISS,
    PARTS,
    Assumptions,
    Beside,
    Part,
    Prediction,
    beside,
    changed,
    logits_work,
    predict,
    predictions,
    row_kernel,
)
from bench.plots import latest
from bench.shapes import LINEAR, LOGITS, TABLES, Shape


def _rows_of(shape: Shape, part: Part, given: Assumptions) -> list[tuple[str, float, float, str, str]]:
    """(kernel, instructions an element, seconds, what bounds it, share of the copy bandwidth of both, in the last) of `token_log_probs`."""
    dtype = getattr(torch, shape.dtype)
    work, elements = logits_work(shape.scored, shape.vocabulary, dtype, part.architecture), shape.scored * shape.vocabulary
    times = [row_kernel(one, part, given) for one in work]
    share = 3 * elements * dtype.itemsize / part.bandwidth / sum(seconds for seconds, _ in times)
    shares = [""] * (len(work) - 1) + [f"{share:.0%}"]
    names = [one.name.removesuffix("_kernel") for one in work]
    return [(name, one.instructions / elements, *time, text) for name, one, time, text in zip(names, work, times, shares)]


def logits_table(parts: Iterable[Part], given: Assumptions) -> list[str]:
    """The log-probs of logits: each kernel's roof, and the share of the bandwidth of three passes that both together reach."""
    lines = [f"{'part':<5} {'shape':<9} {'dtype':<9} {'kernel':<22} {'instr/elem':>10} {'ms':>7}  bound by   three passes / both kernels"]
    for part in parts:
        for shape in TABLES["gpu"][LOGITS]:
            for name, instructions, seconds, bound, share in _rows_of(shape, part, given):
                line = f"{part.name:<5} {shape.name:<9} {shape.dtype:<9} {name:<22} {instructions:>10.1f} {1e3 * seconds:>7.2f}"
                lines.append(f"{line}  {bound:<9}  {share}".rstrip())
    return lines


def beside_table(found: Iterable[Beside]) -> list[str]:
    """One line a record; those that are off by more than a tenth are marked."""
    lines = [f"{'part':<5} {'shape':<12} {'measured ms':>11} {'model ms':>9} {'off':>6} {'measured share':>14} {'model share':>11}"]
    for one in found:
        line = f"{one.prediction.part:<5} {one.prediction.shape:<12} {1e3 * one.seconds:>11.2f} {1e3 * one.prediction.seconds:>9.2f} "
        line += f"{one.off:>+6.0%} {one.share:>14.0%} {one.prediction.share:>11.0%}"
        lines.append(line + ("  <- to be explained" if abs(one.off) > MISS else ""))
    return lines


def fused_table(found: Iterable[Prediction]) -> list[str]:
    """One line a prediction: milliseconds by kind."""
    head = f"{'part':<5} {'shape':<12} {'tokens':>6} {'active':>6} {'H':>5} {'V':>7} {'budget':>8} {'rows':>5} "
    head += f"{'ms':>7} {'bare':>7} {'share':>6}  "
    lines = [head + "  ".join(f"{kind:>{max(len(kind), 6)}}" for kind in KINDS)]
    for one in found:
        line = f"{one.part:<5} {one.shape:<12} {one.tokens:>6} {one.backward:>6} {one.hidden:>5} {one.vocabulary:>7} {one.budget:>8} "
        line += f"{one.chunk_rows:>5} {1e3 * one.seconds:>7.2f} {1e3 * one.bare:>7.2f} {one.share:>6.0%}  "
        lines.append(line + "  ".join(f"{1e3 * one.kinds[kind]:>{max(len(kind), 6)}.2f}" for kind in KINDS))
    return lines


def write(path: pathlib.Path, found: Iterable[Prediction]) -> None:
    """The predictions as CSV; its first column says that it is a model."""
    fields = [name for name in Prediction._fields if name != "kinds"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", *fields, "share", *(f"{kind} s" for kind in KINDS)])
        for one in found:
            numbers = [getattr(one, name) for name in fields] + [one.share, *one.kinds.values()]
            writer.writerow(["model", *(f"{value:.6g}" if isinstance(value, float) else value for value in numbers)])


def page_tables(parts: Iterable[Part], given: Assumptions) -> dict[str, list[str]]:
    """The tables of docs/performance.md by name, in Markdown: shares of the dense shapes, where the time goes, the row kernels."""
    parts = list(parts)
    dense = [shape for shape in TABLES["gpu"][LINEAR] if shape.trained == shape.active == 1 and not shape.frozen]
    cells = [(shape, part, budget) for shape in dense for part in parts for budget in BUDGETS]
    share = {(shape.name, part.name, budget): predict(shape, budget, part, given).share for shape, part, budget in cells}
    heads = [f"{part.name} {budget}" for part in parts for budget in BUDGETS]
    shares = [f"On paper, {min(share.values()):.0%} to {max(share.values()):.0%} of the bare products:", ""]
    shares += [f"| N | H | V | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for shape in sorted(dense, key=lambda shape: (shape.scored, shape.hidden)):
        found = [f"{share[shape.name, part.name, budget]:.0%}" for part in parts for budget in BUDGETS]
        shares.append(f"| {shape.scored} | {shape.hidden} | {shape.vocabulary} | {' | '.join(found)} |")
    parted = [f"| part | chunk_bytes | rows a chunk | all | {' | '.join(KINDS)} |", "|---" * (4 + len(KINDS)) + "|"]
    for part in parts:
        for budget in BUDGETS:
            one = predict(dense[0], budget, part, given)
            kinds = " | ".join(f"{1e3 * one.kinds[kind]:.1f}" for kind in KINDS)
            parted.append(f"| {part.name} | {budget} | {one.chunk_rows} | {1e3 * one.seconds:.1f} | {kinds} |")
    kernels = ["| part | logits | kernel | instructions an element | bound by | share of the copy bandwidth, both |", "|---" * 6 + "|"]
    for part in parts:
        for shape in TABLES["gpu"][LOGITS][:2]:
            for name, instructions, _, bound, share in _rows_of(shape, part, given):
                kernels.append(f"| {part.name} | {shape.dtype} | {name} | {instructions:.1f} | {bound} | {share} |")
    return {"shares": shares, "where the time goes": parted, "row kernels": kernels}


def with_tables(text: str, tables: dict[str, list[str]]) -> str:
    """A page with the tables between its marks `<!-- model: NAME -->` and `<!-- end -->` written anew."""
    for name, lines in tables.items():
        pieces = re.split(rf"(?<=<!-- model: {name} -->\n).*?(?=<!-- end -->)", text, flags=re.DOTALL)
        if len(pieces) != 2:
            raise SystemExit(f"the page has {len(pieces) - 1} places for the table {name!r}; it needs one")
        text = "\n".join(["", *lines, "", ""]).join(pieces)
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--csv", type=pathlib.Path, help="write the predictions here too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="another value of an input")
    measured = records.FOLDER / "gpu.csv"
    parser.add_argument("--records", type=pathlib.Path, default=measured, help="measurements to put beside it, where there are any")
    parser.add_argument("--page", type=pathlib.Path, help="write the tables of this page (docs/performance.md) anew, and nothing else")
    options = parser.parse_args(arguments)
    parts, given = changed(options.set)
    unknown = [name for name in options.parts.split(",") if name not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    chosen = [parts[name] for name in options.parts.split(",")]
    try:
        if options.page is not None:
            text = options.page.read_text(encoding="utf-8")
            options.page.write_text(with_tables(text, page_tables(chosen, given)), encoding="utf-8")
            return 0
        found = list(predictions(chosen, given))
        of_logits = logits_table(chosen, given)
    except machine_code.Missing as missing:
        print(f"the model counts instructions of compiled kernels, and {missing}", file=sys.stderr)
        return 2
    print("MODEL, not measured: fused clipped loss in bf16, forward and backward, ms; share = bare products / all")
    print("\n".join(fused_table(found)))
    print("\nMODEL, not measured: log-probs of logits, forward and backward")
    print("\n".join(of_logits))
    print("\ninputs:")
    for part in chosen:
        print(f"  {part.name}: {part.processors} processors, {part.clock:g} Hz, {part.bandwidth:g} B/s, {part.gemm:g} operations/s")
        print(f"    {part.source}")
    print(f"  common: {', '.join(f'{name} {value:g}' for name, value in given._asdict().items())} (bench/model.py says what and whence)")
    if options.records.exists():
        measured = beside(latest(records.read(options.records)), parts, given)
        print("\n".join(["\nrecords beside the model:", *beside_table(measured)]))
    if options.csv is not None:
        write(options.csv, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
