"""One page on what a sitting on a GPU found, from the files that its steps left: per kernel `run` or what failed.

A kernel is `run` where every test and case that launched it passed. Where one failed, the page names it, and all kernels that it launched.
"""

import json
import pathlib
import re
from collections.abc import Iterator

from bench.steps import Outcome, lines_backwards

MOST = 12  # failures shown a list; the logs have the rest
WIDTH = 170


def text(folder: pathlib.Path, record: pathlib.Path, outcomes: list[Outcome], minutes: float | None) -> str:
    """The page, from the logs and reports in `folder` and the CSV of timings."""
    parts = [_head(folder, outcomes, minutes), _kernels(folder), _steps(outcomes), _times(record, folder), _failures(folder, outcomes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def checks(folder: pathlib.Path) -> list[dict]:
    """Every test and case that was begun: name, result (passed, failed, skipped, or "not ended"), note, kernels."""
    found = []
    for path in sorted([*folder.glob("tests-*.jsonl"), *folder.glob("kernels.jsonl")]):
        last: dict[str, dict] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(line)
            last[line["name"]] = line
        found += [{"note": "", "kernels": [], **line} for line in last.values()]
    return [line | ({"result": "not ended"} if line["result"] == "begun" else {}) for line in found]


def of_kernel(name: str, found: list[dict], ran: str = "run") -> str:
    """`run` (or another word for how), or what failed."""
    seen = [line for line in found if name in line["kernels"]]
    bad = [line for line in seen if line["result"] != "passed"]
    if not seen:
        return "not launched"
    if not bad:
        return f"{ran}: {len(seen)} tests and cases launched it, all right"
    return f"FAILED in {len(bad)} of {len(seen)}: " + ", ".join(_short(line["name"]) for line in bad[:3])


def _head(folder: pathlib.Path, outcomes: list[Outcome], minutes: float | None) -> str:
    about = _about(folder)
    bad = [outcome.step for outcome in outcomes if outcome.failed and not outcome.stopped]
    failed = sum(line["result"] == "failed" for line in checks(folder))  # also in a step that was stopped behind them
    bad += [f"{failed} tests and cases"] if failed else []
    stopped = [outcome.step for outcome in outcomes if outcome.stopped]
    missing = [outcome.step for outcome in outcomes if not outcome.failed and outcome.result != "ok"]
    line = "nothing wrong was found" if not bad else f"something is wrong: {', '.join(bad)}"
    line += f"; not finished within its limit: {', '.join(stopped)}" if stopped else ""
    line += f"; not run: {', '.join(missing)}" if missing else ""
    named = [f"- {name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in about.items()]
    spent = f"- time: {sum(outcome.seconds for outcome in outcomes):.0f} s" + (f" of {60 * minutes:.0f} s" if minutes else "")
    return "\n".join(["# Verdict", "", f"**{line}**", "", *(named or ["- machine: unknown, see machine.log"]), spent])


def _about(folder: pathlib.Path) -> dict:
    path = folder / "machine.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _kernels(folder: pathlib.Path) -> str:
    from bench import launches

    found = checks(folder)
    if not found:
        return "## Kernels\n\nNo test and no case was begun."
    ran = "run" if "architecture" in _about(folder) else "interpreted, on a CPU"
    rows = [f"| {name} | {of_kernel(name, found, ran)} |" for name in launches.names()]
    return "\n".join(["## Kernels", "", "| kernel | verdict |", "|---|---|", *rows])


def _steps(outcomes: list[Outcome]) -> str:
    rows = [f"| {outcome.step} | {outcome.result} | {outcome.seconds:.0f} |" for outcome in outcomes]
    return "\n".join(["## Steps", "", "| step | result | s |", "|---|---|---|", *rows])


def _times(record: pathlib.Path, folder: pathlib.Path) -> str:
    """Ours at each shape, its share of the limit, and the fastest peer, of the rows from this device."""
    if not (folder / "shapes.log").exists() or not record.exists():
        return ""
    from bench import records

    rows = records.read(record)
    blocks: dict[tuple[str, str], dict[str, records.Record]] = {}
    for where, row in rows:
        if where.device == rows[-1][0].device:
            blocks.setdefault((row.problem, row.shape), {})[row.peer] = row
    head = "| problem, shape | ours, ms | limit: its share of our time | fastest peer: time / ours |"
    lines = ["## Times (records: gpu.csv)", "", head, "|---|---|---|---|"]
    for (problem, shape), block in blocks.items():
        ours = block.get(records.OURS)
        limits = ", ".join(f"{row.peer} {row.ratio:.0%}" for row in block.values() if row.error_value is None)
        peers = sorted((row.ratio, row.peer) for row in block.values() if row.error_value is not None and row.peer != records.OURS)
        fastest = f"{peers[0][1]} {peers[0][0]:.2f}x" if peers else "none"
        took = "none" if ours is None else f"{1e3 * ours.seconds:.2f}"
        lines.append(f"| {problem}, {shape} | {took} | {limits} | {fastest} |")
    return "\n".join(lines)


def _failures(folder: pathlib.Path, outcomes: list[Outcome]) -> str:
    bad = (line for line in checks(folder) if line["result"] not in ("passed", "skipped"))
    lines = [f"- {_short(line['name'])}: {line['result']}. {line['note']}" for line in bad]
    lines += [f"- doctor: {line}" for line in _wrong_lines(folder / "doctor.log", r"^\s*WRONG")]
    lines += [f"- shapes: {line}" for line in _wrong_lines(folder / "shapes.log", r": FAILED: ")]
    for outcome in outcomes:
        if outcome.failed:
            log = f"{outcome.step}.log"
            lines.append(f"- {outcome.step}: {outcome.result}; {log} ends: {next(lines_backwards(folder / log), '')}")
    if not lines:
        return ""
    cut = [" ".join(line.split())[:WIDTH] for line in lines]
    # The steps' own lines stand last, and are never cut away.
    steps = sum(outcome.failed for outcome in outcomes)
    details, ends = cut[: len(cut) - steps], cut[len(cut) - steps :]
    more = [f"- and {len(details) - MOST} more, in the logs"] if len(details) > MOST else []
    return "\n".join(["## What failed", "", *details[:MOST], *more, *ends])


def _wrong_lines(path: pathlib.Path, pattern: str) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return (line.strip() for line in text.splitlines() if re.search(pattern, line))


def _short(name: str) -> str:
    return name.removeprefix("tests/")
