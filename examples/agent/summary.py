"""What the runs came to: the same figures for both algorithms, mean and standard deviation over the seeds."""

import statistics

SMOOTHING = 10  # updates in a trailing mean


def smooth(values: list[float | None], width: int = SMOOTHING) -> list[float]:
    """Trailing mean over the last `width` updates; a None is left out, NaN where nothing is left."""
    means = []
    for i in range(len(values)):
        window = [v for v in values[max(0, i + 1 - width) : i + 1] if v is not None]
        means.append(statistics.fmean(window) if window else float("nan"))
    return means


def last_quarter(values: list[float | None]) -> float | None:
    """Mean over the last quarter of training; None if there is nothing to average."""
    window = [v for v in values[-max(1, len(values) // 4) :] if v is not None]
    return statistics.fmean(window) if window else None


def episodes_until(success: list[float], level: float, episodes_an_update: int) -> int | None:
    """Episodes played when the smoothed success first reached `level`; None if it never did. A full window counts only."""
    for i, value in enumerate(smooth(success)):
        if value >= level and i + 1 >= min(SMOOTHING, len(success)):
            return (i + 1) * episodes_an_update
    return None


def summarise(runs: list[dict], episodes_an_update: int) -> dict[str, dict]:
    """Per algorithm: each figure as {mean, std, seeds}, where seeds lists the runs' own values in the order of their seeds."""
    figures = {
        "success_last_quarter": lambda r: last_quarter(r["success"]),
        "success_whole_training": lambda r: statistics.fmean(r["success"]),
        "episodes_until_half_succeed": lambda r: episodes_until(r["success"], 0.5, episodes_an_update),
        "episodes_until_90_percent_succeed": lambda r: episodes_until(r["success"], 0.9, episodes_an_update),
        "invalid_actions_last_quarter": lambda r: last_quarter(r["invalid_actions"]),
        "steps_to_goal_last_quarter": lambda r: last_quarter(r["steps_to_goal"]),
        "rows_without_forward": lambda r: statistics.fmean(r["rows_without_forward"]),
        "seconds": lambda r: r["seconds"],
    }
    summary: dict[str, dict] = {}
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):
        own = sorted((r for r in runs if r["algorithm"] == algorithm), key=lambda r: r["seed"])
        summary[algorithm] = {name: _spread([figure(r) for r in own]) for name, figure in figures.items()}
    return summary


def _spread(values: list[float | None]) -> dict:
    known = [v for v in values if v is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "seeds": values,
    }


def table(summary: dict[str, dict]) -> str:
    """The summary as text, one line a figure, one column an algorithm: mean ± standard deviation over the seeds."""
    width = max(len(name) for figures in summary.values() for name in figures)
    lines = ["".ljust(width) + "".join(algorithm.rjust(22) for algorithm in summary)]
    for name in next(iter(summary.values())):
        lines.append(name.replace("_", " ").ljust(width) + "".join(_cell(figures[name]).rjust(22) for figures in summary.values()))
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    mean, std, seeds = figure["mean"], figure["std"], figure["seeds"]
    if mean is None:
        return "never"
    digits = 0 if mean >= 100 else 1 if mean >= 2 else 3
    cell = f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")
    reached = sum(v is not None for v in seeds)
    return cell if reached == len(seeds) else f"{cell} ({reached}/{len(seeds)})"
