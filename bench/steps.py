"""Steps of a run on a borrowed machine: each a process of its own under a limit of its own, all within one budget, none hiding the next.

What a step prints is in `OUT/<step>.log` as it is printed. A step whose tool or probe does not work is left out with the reason. Steps
stand in order of importance: where the budget is short the last ones are given up first, and what is left over at the end is theirs.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRACE = 3.0  # seconds between asking a process to end and ending it
POLL = 0.2
PROBE_SECONDS = 60.0
LIMIT = "BENCH_SECONDS"  # in a step's environment: how long it has
CUDA_FOLDERS = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")


class Step(NamedTuple):
    """A command of its own process, and what it is for."""

    name: str
    about: str
    command: tuple[str, ...]
    tool: str | None = None  # left out where this program is not installed; it stands before the command
    environment: dict[str, str] = {}
    ends: bool = False  # where this fails the rest says nothing
    probe: tuple[str, ...] = ()  # a small command that must work (through the tool), or the step is left out
    seconds: float = 3600.0  # its limit
    least: float = 0.0  # with less than this it is not begun


class Outcome(NamedTuple):
    step: str
    result: str  # ok, wrong, stopped after its limit, or why it was left out
    seconds: float

    @property
    def failed(self) -> bool:
        return self.result.startswith("wrong") or self.stopped

    @property
    def stopped(self) -> bool:
        return self.result.startswith("stopped")


def run(
    steps: list[Step] | tuple[Step, ...],
    *,
    execute: Callable[[Step, float], str],
    seconds: float | None = None,
    seen: Callable[[Outcome], None] = lambda outcome: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """The steps in turn, a line before and after each. `execute(step, limit)` returns a result; `seen` gets each outcome at once."""
    until = clock() + (float("inf") if seconds is None else seconds)
    outcomes, ended = [], None
    for number, step in enumerate(steps, 1):
        place, started = f"[{number}/{len(steps)}] {step.name}", clock()
        limit = min(step.seconds, until - started - _kept(steps[number:], until - started - step.least))
        if ended is not None:
            result = f"not run: {ended} found something wrong"
        elif limit < max(step.least, 1.0):
            result = f"not run: {max(until - started, 0):.0f} s were left, it needs {step.least:.0f}"
        else:
            print(f"{place}: {step.about} (at most {limit:.0f} s)" if seconds is not None else f"{place}: {step.about}", flush=True)
            result = execute(step, limit)
        outcomes.append(Outcome(step.name, result, clock() - started))
        seen(outcomes[-1])
        print(f"{place}: {result}, {outcomes[-1].seconds:.0f} s", flush=True)
        if outcomes[-1].failed and not outcomes[-1].stopped and step.ends:
            ended = step.name
    return outcomes


def _kept(later: list[Step] | tuple[Step, ...], seconds: float) -> float:
    """What to leave for the steps to come: the least of as many of them as fit, the important ones first."""
    kept = 0.0
    for step in later:
        if kept + step.least > seconds:
            break
        kept += step.least
    return kept


def execute(step: Step, limit: float, folder: pathlib.Path) -> str:
    """Run one step; its output is shown and kept in `folder`."""
    command, started = step.command, time.monotonic()
    if step.tool is not None:
        tool = _program(step.tool)
        if tool is None:
            return f"left out: {step.tool} is not installed"
        command = (tool, *command)
    log = folder / f"{step.name}.log"
    if step.probe:
        probe = (command[: len(command) - len(step.command)]) + step.probe
        code = _watched(probe, step, min(limit / 2, PROBE_SECONDS), log.with_suffix(".probe.log"))
        if code != 0:
            said = _last_line(log.with_suffix(".probe.log"))
            how = "does not end" if code is None else f"fails with {code}"
            return f"left out: {step.tool or 'the probe'} {how} on one line of Python ({said})"
    left = max(limit - (time.monotonic() - started), 1.0)
    code = _watched(command, step, left, log)
    if code is None:
        return f"stopped after {limit:.0f} s, its limit"
    return "ok" if code == 0 else f"wrong (exit code {code})"


def _watched(command: tuple[str, ...], step: Step, limit: float, log: pathlib.Path) -> int | None:
    """The exit code, None if the limit ended it. The process gets a group of its own, so that its children end with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment, LIMIT: f"{limit:.0f}"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            return 127
        try:
            return _shown(process, log, time.monotonic() + limit)
        finally:
            _end(process)


def _shown(process: subprocess.Popen, log: pathlib.Path, until: float) -> int | None:
    """Wait for the process, or for the time to be over, with what it prints passed on."""
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(POLL, max(until - time.monotonic(), 0)))
            print(file.read(), end="", flush=True)
            if process.returncode is not None or time.monotonic() >= until:
                return process.returncode


def _end(process: subprocess.Popen) -> None:
    """First as Ctrl-C does, so that it writes what it has. A process that even SIGKILL does not end (in a driver) is left behind."""
    for number in (signal.SIGINT, signal.SIGKILL) if process.poll() is None else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _program(name: str) -> str | None:
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=f"{folder}/bin") for folder in CUDA_FOLDERS if folder)), None)


def _last_line(path: pathlib.Path) -> str:
    return next(lines_backwards(path), "it says nothing")[:160]


def lines_backwards(path: pathlib.Path) -> Iterator[str]:
    """The lines of a file that say something, the last one first."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return (line.strip() for line in reversed(text.splitlines()) if line.strip())
