"""The table of ratios as text."""

from collections.abc import Iterable

from bench.records import OURS, Record


def table(rows: Iterable[Record]) -> list[str]:
    """One block a problem and shape: ours first, then the others from the fastest to the slowest."""
    blocks: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        blocks.setdefault((row.problem, row.shape), []).append(row)
    lines = []
    for (problem, shape), block in blocks.items():
        first = block[0]
        sizes = f"{first.tokens} tokens, H {first.hidden}, V {first.vocabulary}, {first.dtype}{', head frozen' if first.frozen else ''}"
        lines += ["", f"{problem}, {shape}: {sizes}, {first.trained:.0%} trained, {first.active:.0%} of them active"]
        for row in sorted(block, key=lambda row: (row.peer != OURS, row.ratio)):
            lines.append(f"  {row.peer:<36} {row.ratio:6.2f}x {1e3 * row.seconds:10.2f} ms  {_memory(row):>9}  {_errors(row)}".rstrip())
    return lines


def _memory(row: Record) -> str:
    return "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f} MiB"


def _errors(row: Record) -> str:
    named = {"value": row.error_value, "d hidden": row.error_d_hidden, "d weight": row.error_d_weight, "d logits": row.error_d_logits}
    found = [f"{name} {error:.0e}" for name, error in named.items() if error is not None]
    return f"errors: {', '.join(found)}" if found else ""
