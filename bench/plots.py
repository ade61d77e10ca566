"""Pictures of the records, made from the CSV files and nothing else: ratios a shape as bars, and memory against time.

python -m bench.plots                # every CSV of bench/records, PNG files beside it (make bench-plots)
"""

import argparse
import math
import pathlib
import sys
import textwrap
from collections.abc import Iterable

from bench.records import FOLDER, OURS, Machine, Record, read

COLUMNS = 3
LETTERS_OF_A_COLUMN = 60  # of a title: 5.5 inches


def latest(rows: Iterable[tuple[Machine, Record]]) -> list[tuple[Machine, Record]]:
    """The last row of every problem, shape, peer and device."""
    found = {}
    for where, row in rows:
        found[where.device, row.problem, row.shape, row.peer] = (where, row)
    return list(found.values())


def draw(path: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """Two pictures a device and problem of one CSV file; returns where they are."""
    groups: dict[tuple[str, str], list[tuple[Machine, Record]]] = {}
    for where, row in latest(read(path)):
        groups.setdefault((where.device, row.problem), []).append((where, row))
    made, devices = [], list(dict.fromkeys(device for device, _ in groups))
    folder.mkdir(parents=True, exist_ok=True)
    for (device, problem), rows in groups.items():
        stem = f"{path.stem}-{problem}" if len(devices) == 1 else f"{path.stem}{devices.index(device)}-{problem}"
        for kind, panel in (("ratios", _ratios), ("memory", _memory)):
            made.append(_figure(folder / f"{stem}-{kind}.png", rows, panel))
        made += _beside_the_model(folder / f"{stem}-model.png", rows)
    return made


def _beside_the_model(path: pathlib.Path, rows: list[tuple[Machine, Record]]) -> list[pathlib.Path]:
    """The measured share of the bare products and the model's, a pair of bars a shape; nothing where the model knows no such record."""
    from bench import machine_code, model

    try:
        found = model.beside(rows)
    except machine_code.Missing as missing:
        print(f"no picture of the model: {missing}", file=sys.stderr)
        return []
    if not found:
        return []
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.5 * len(found)), layout="constrained")
    for shift, label, values, style in (
        (-0.2, "measured", [one.share for one in found], {"color": "tab:orange"}),
        (0.2, "model, not measured", [one.prediction.share for one in found], {"color": "white", "edgecolor": "black", "hatch": "//"}),
    ):
        bars = axis.barh([place + shift for place in range(len(found))], values, height=0.38, label=label, **style)
        axis.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=8, padding=2)
    axis.set_yticks(range(len(found)), [one.prediction.shape for one in found], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_xlabel("bare matrix products' share of the time", fontsize=8)
    axis.legend(fontsize=8)
    where = rows[-1][0]
    figure.suptitle(f"{rows[0][1].problem}: {where.device}, torch {where.torch}, {where.date[:10]}, commit {where.commit}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]


def _figure(path: pathlib.Path, rows: list[tuple[Machine, Record]], panel) -> pathlib.Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes: dict[str, list[Record]] = {}
    for _, row in rows:
        shapes.setdefault(row.shape, []).append(row)
    columns = min(COLUMNS, len(shapes))
    lines = math.ceil(len(shapes) / columns)
    most = max(map(len, shapes.values()))
    height = 0.3 + lines * (1.4 + 0.3 * most)
    figure, axes = plt.subplots(lines, columns, figsize=(5.5 * columns, height), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    for axis, (shape, records) in zip(axes.flat, shapes.items()):
        first = records[0]
        title = f"{shape}: {first.tokens} tokens, H {first.hidden}, V {first.vocabulary}, {first.dtype}"
        axis.set_title(textwrap.fill(title, LETTERS_OF_A_COLUMN - 10), fontsize=9)
        panel(axis, records)
    where = max((where for where, _ in rows), key=lambda where: where.date)
    title = f"{rows[0][1].problem}: {where.device}, torch {where.torch}, {where.date[:10]}, commit {where.commit}"
    figure.suptitle(textwrap.fill(title, columns * LETTERS_OF_A_COLUMN), fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _ratios(axis, records: list[Record]) -> None:
    records = sorted(records, key=lambda row: row.ratio, reverse=True)
    bars = axis.barh([row.peer for row in records], [row.ratio for row in records], color=[_colour(row) for row in records])
    axis.bar_label(bars, [f"{row.ratio:.2f}x" for row in records], fontsize=8, padding=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(x=0.15)
    axis.set_xlabel("time / ours; longer is slower", fontsize=8)
    axis.tick_params(labelsize=8)


def _memory(axis, records: list[Record]) -> None:
    known = [row for row in records if row.peak_bytes is not None]
    axis.scatter([1e3 * row.seconds for row in known], [row.peak_bytes / 2**20 for row in known], color=[_colour(row) for row in known])
    for row in known:
        axis.annotate(row.peer, (1e3 * row.seconds, row.peak_bytes / 2**20), fontsize=7, xytext=(4, 3), textcoords="offset points")
    if known:
        axis.set_xlim(0, 1.3e3 * max(row.seconds for row in known))  # room for the names
        axis.set_ylim(0, 1.2 * max(max(row.peak_bytes for row in known) / 2**20, 1))
    axis.set_xlabel("ms, forward and backward", fontsize=8)
    axis.set_ylabel("MiB at the peak", fontsize=8)
    axis.tick_params(labelsize=8)


def _colour(row: Record) -> str:
    if row.peer == OURS:
        return "tab:orange"
    return "tab:gray" if row.error_value is None else "tab:blue"  # a limit computes no answer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=pathlib.Path, help="CSV files (default: cpu.csv and gpu.csv of bench/records)")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the pictures (default: beside the CSV)")
    options = parser.parse_args(arguments)
    paths = options.records or [path for path in (FOLDER / "cpu.csv", FOLDER / "gpu.csv") if path.exists()]
    if not paths:
        print(f"no record in {FOLDER.name}/ yet: run `make bench` or `make bench-gpu` first", file=sys.stderr)
        return 1
    for path in paths:
        for picture in draw(path, options.out or path.parent):
            print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
