"""The demo's two pictures: one trajectory's credit, and the learning curves."""

import pathlib
import statistics

import matplotlib

matplotlib.use("agg")  # files only: works without a display
import matplotlib.pyplot as plt

from .rollouts import Rollouts
from .summary import SMOOTHING, smooth

COLOURS = {"grpo": "#D55E00", "gigpo": "#0072B2"}
NAMES = {"grpo": "GRPO", "gigpo": "GiGPO"}
GREY = "#666666"


def draw_credit(path: pathlib.Path, rollouts: Rollouts, chosen: int, groups, levels) -> None:
    """Each step of one trajectory: its advantage under GRPO and under GiGPO, its action, and how large its anchor group is."""
    rows = (rollouts.trajectory == chosen).nonzero()[:, 0].tolist()
    sizes = groups.counts[groups.ids[rows]].tolist()
    places = range(len(rows))
    figure, axes = plt.subplots(figsize=(9, 1.9 + 0.27 * len(rows)), layout="constrained")
    for name, values, shift in (("grpo", levels.episode, -0.2), ("gigpo", levels.advantages, 0.2)):
        axes.barh([p + shift for p in places], values[rows].tolist(), height=0.4, color=COLOURS[name], label=NAMES[name])

    labels = [f"{i + 1:>2}  {_shorten(rollouts.actions[row])}" for i, row in enumerate(rows)]
    axes.set_yticks(list(places), labels, fontfamily="monospace", fontsize=8)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    axes.tick_params(axis="y", length=0, pad=225)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for place, row, size in zip(places, rows, sizes, strict=True):
        reward = rollouts.rewards[row].item()
        note = f"{size:>3}" + (f"   {reward:+g}" if reward else "")
        axes.text(1.02, place, note, transform=axes.get_yaxis_transform(), va="center", fontsize=8, fontfamily="monospace", color=GREY)
    axes.text(1.02, -1.0, "group size,\nreward", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color=GREY)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("advantage of the step (points of the game)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.75 / len(rows) + 0.03), ncols=2, frameon=False)
    outcome = "solved" if rollouts.solved[chosen] else "not solved"
    figure.suptitle(
        f"Who gets the credit? {rollouts.names[chosen]} ({outcome})\n"
        "GRPO gives every action the same advantage. GiGPO adds how the step compares with the others\n"
        "taken from the same state (equal observation text). A step alone in its state keeps GRPO's advantage.",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curves(path: pathlib.Path, runs: list[dict], episodes_an_update: int, title: str, *, shortest: int | None = None) -> None:
    """Success, answers that are no action, and steps to the goal against the episodes played: mean of the seeds with a band."""
    panels = {
        "success": "episodes that reach the goal",
        "invalid_actions": "answers that are no action word",
        "steps_to_goal": "steps of the episodes that reach the goal",
    }
    figure, row = plt.subplots(1, len(panels), figsize=(13, 4.4), layout="constrained")
    if shortest is not None:
        row[2].axhline(shortest, color=GREY, linestyle=":", label=f"shortest way: {shortest}")
        row[2].legend(loc="upper right", frameon=False)
    for axes, (name, label) in zip(row, panels.items(), strict=True):
        for algorithm in dict.fromkeys(run["algorithm"] for run in runs):
            curves = [smooth(run[name]) for run in runs if run["algorithm"] == algorithm]
            _draw_band(axes, curves, episodes_an_update, algorithm)
        axes.set_xlabel("episodes played")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlim(0, len(runs[0]["success"]) * episodes_an_update)
        axes.set_ylim(bottom=0)
    for axes in row[:2]:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    row[0].legend(loc="best", frameon=False)
    seeds = len({run["seed"] for run in runs})
    meaning = f"thick: mean of {seeds} seeds; band: one standard deviation either side; thin: each seed" if seeds > 1 else "one seed"
    figure.suptitle(f"{title}\n{meaning} (trailing means over {SMOOTHING} updates)", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_band(axes, curves: list[list[float]], episodes_an_update: int, algorithm: str) -> None:
    """One algorithm's mean, band and single seeds. A point needs a value from every seed, else the mean would change its members."""
    colour = COLOURS[algorithm]
    episodes = [(i + 1) * episodes_an_update for i in range(len(curves[0]))]
    for curve in curves:
        axes.plot(episodes, curve, color=colour, linewidth=0.6, alpha=0.45)
    columns = list(zip(*curves, strict=True))
    mean = [statistics.fmean(column) for column in columns]  # NaN if one seed has none
    axes.plot(episodes, mean, color=colour, linewidth=2.2, label=NAMES[algorithm])
    if len(curves) > 1:
        spread = [statistics.stdev(column) if mean[i] == mean[i] else float("nan") for i, column in enumerate(columns)]
        low, high = ([m + side * s for m, s in zip(mean, spread, strict=True)] for side in (-1, 1))
        axes.fill_between(episodes, low, high, color=colour, alpha=0.18, linewidth=0)


def _shorten(action: str, longest: int = 36) -> str:
    text = " ".join(action.split()) or "(empty)"
    return text if len(text) <= longest else text[: longest - 1] + "…"
