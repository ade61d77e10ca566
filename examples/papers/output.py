"""What the reproductions share: their options, mean and spread over seeds, a printed table, a figure and the numbers as JSON."""

import argparse
import contextlib
import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")

Row = dict[str, list[float]]  # column: one number a seed


def parse(description: str, *, seeds: int, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"repetitions (default {seeds})")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("papers_out"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="2 seeds and less of everything: shows that it works")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}; a spread needs two")
    if options.quick:
        options.seeds = 2
    return options


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (over n - 1)."""
    return statistics.fmean(values), statistics.stdev(values)


def table(rows: dict[str, Row]) -> str:
    """One line a row, one column a figure: mean ± standard deviation over the seeds."""
    width = max(map(len, rows)) + 2
    columns = list(next(iter(rows.values())))
    wide = [max(len(column), 15) + 2 for column in columns]
    lines = [" " * width + "".join(column.rjust(w) for column, w in zip(columns, wide, strict=True))]
    for name, row in rows.items():
        cells = ("{:.3f} ± {:.3f}".format(*spread(row[column])).rjust(w) for column, w in zip(columns, wide, strict=True))
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)


def write(out: pathlib.Path, name: str, rows: dict[str, Row]) -> None:
    """Print the table; save the numbers of every seed to NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\n{out / name}.json, {out / name}.png")


@contextlib.contextmanager
def figure(out: pathlib.Path, name: str, title: str, panels: int) -> Iterator[Sequence]:
    """The axes of a row of panels, saved as NAME.png at the end."""
    import matplotlib

    matplotlib.use("agg")  # files only: works without a display
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    drawing, axes = plt.subplots(1, panels, figsize=(4.6 * panels, 4), layout="constrained", squeeze=False)
    drawing.suptitle(title, fontsize=10)
    for panel in axes[0]:
        panel.grid(alpha=0.3)
    yield axes[0]
    axes[0][0].legend(frameon=False, fontsize=8)
    drawing.savefig(out / f"{name}.png", dpi=130)
    plt.close(drawing)


def band(axes, x: Sequence[float], curves: Sequence[Sequence[float]], *, label: str, colour: str) -> None:
    """The mean of the seeds' curves, with one standard deviation either side."""
    mean, deviation = zip(*map(spread, zip(*curves, strict=True)), strict=True)
    axes.plot(x, mean, color=colour, label=label)
    low, high = ([m + side * d for m, d in zip(mean, deviation, strict=True)] for side in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
