"""One command on a GPU machine: correctness first, then the timings; everything goes into bench/records.

    python -m bench.gpu                          # all steps (make bench-gpu)
    python -m bench.gpu --steps timings,plots    # some of them, where one sitting is too short
    python -m bench.gpu --steps timings -- -k "eager and m0.5"

A step that finds something wrong ends the run: what is not right is not timed (a peer's wrong answer fails its own time only). A tool
that is missing is reported and left out.
"""

import argparse
import csv
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPEATS = 50
LOG = ROOT / "bench" / "records" / "gpu-checks.csv"
PYTHON = (sys.executable, "-m")
TIMINGS = (*PYTHON, "pytest", "bench", "--benchmark-only", "--shapes", "gpu", "-q")
NO_DEVICE = (
    "bench-gpu needs a CUDA device, and torch {version} sees none here; "
    "on a machine with a GPU install a CUDA build of torch, on a CPU run `make bench`"
)


class Step(NamedTuple):
    """A command of its own process, and what it is for."""

    name: str
    about: str
    command: tuple[str, ...]
    tool: str | None = None  # left out where this program is not installed
    environment: dict[str, str] = {}
    ends: bool = True  # what fails here ends the run


def _sanitizer(tool: str, about: str) -> Step:
    options = ("--tool", tool, "--error-exitcode", "1", "--target-processes", "application-only")
    kernels = (*PYTHON, "bench.kernels", "--device", "cuda")
    # Without torch's cache every tensor is an allocation of its own, so that a byte past its end is seen.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, about, ("compute-sanitizer", *options, *kernels), "compute-sanitizer", alone)


STEPS = (
    Step("doctor", "every operation against the float64 reference", (*PYTHON, "gigpo_fast", "doctor", "--selftest")),
    Step("tests", "the tests that need a GPU", (*PYTHON, "pytest", "-q", "-m", "gpu")),
    _sanitizer("memcheck", "reads and writes outside of allocations, in every kernel"),
    _sanitizer("racecheck", "hazards in shared memory, in every kernel"),
    Step("repeats", f"{REPEATS} runs of every kernel give the same bits", (*PYTHON, "bench.kernels", "--repeats", str(REPEATS))),
    Step("timings", "every peer at every GPU shape", (*TIMINGS, "--record", str(LOG.with_name("gpu.csv"))), ends=False),
    Step("plots", "pictures of the record", (*PYTHON, "bench.plots")),
)


class Outcome(NamedTuple):
    step: str
    result: str  # ok, wrong, or why it was left out
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Run the steps asked for; 0 if all that ran went well, 1 if one found something wrong, 2 without a CUDA device."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own, extra = (arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]) if "--" in arguments else (arguments, [])
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=_chosen, default=STEPS, help=f"of {', '.join(step.name for step in STEPS)}; in this order")
    parser.add_argument("--check", action="store_true", help="only say whether there is a CUDA device")
    options = parser.parse_args(own)
    device = device_name()
    if device is None:
        import torch

        print(NO_DEVICE.format(version=torch.__version__), file=sys.stderr)
        return 2
    if options.check:
        print(device)
        return 0
    steps = [step._replace(command=(*step.command, *extra)) if step.name == "timings" else step for step in options.steps]
    outcomes = run(steps, execute=_execute)
    _log(outcomes, device)
    return int(any(outcome.result == "wrong" for outcome in outcomes))


def run(steps: list[Step] | tuple[Step, ...], *, execute: Callable[[Step], int]) -> list[Outcome]:
    """The steps in turn, with a line before and after each; ends after the first that fails."""
    outcomes = []
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.name}: {step.about}", flush=True)
        if step.tool is not None and shutil.which(step.tool) is None:
            outcomes.append(Outcome(step.name, f"{step.tool} is not installed", 0.0))
        else:
            started = time.perf_counter()
            failed = execute(step) != 0
            outcomes.append(Outcome(step.name, "wrong" if failed else "ok", time.perf_counter() - started))
        print(f"[{number}/{len(steps)}] {step.name}: {outcomes[-1].result}, {outcomes[-1].seconds:.0f} s", flush=True)
        if outcomes[-1].result == "wrong" and step.ends:
            left = [later.name for later in steps[number:]]
            print(f"{step.name} found something wrong; not run: {', '.join(left) or 'nothing'}", file=sys.stderr)
            break
    return outcomes


def device_name() -> str | None:
    """The current CUDA device's name, None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _chosen(text: str) -> tuple[Step, ...]:
    names = text.split(",")
    unknown = sorted(set(names) - {step.name for step in STEPS})
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown steps {unknown}; choose from {[step.name for step in STEPS]}")
    return tuple(step for step in STEPS if step.name in names)


def _execute(step: Step) -> int:
    return subprocess.run(step.command, cwd=ROOT, env={**os.environ, **step.environment}, check=False).returncode


def _log(outcomes: list[Outcome], device: str, path: pathlib.Path = LOG, where=None) -> None:
    from bench import records

    if where is None:
        import torch

        where = records.machine(torch.device("cuda"))
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(("date", "commit", "device", "torch", "triton", *Outcome._fields))
        for step, result, seconds in outcomes:
            writer.writerow((where.date, where.commit, device, where.torch, where.triton, step, result, round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
