"""One command on a GPU machine: correctness first, then the timings; everything goes into bench/records, or into a folder of choice.

    python -m bench.gpu                          # all steps (make bench-gpu)
    python -m bench.gpu --steps timings,plots    # some of them, where one sitting is too short
    python -m bench.gpu --steps timings -- -k "eager and m0.5"
    python -m bench.gpu --day --out OUT --minutes 9    # a sitting on a borrowed machine (scripts/gpu_day.sh)

A self-test that finds something wrong ends the run (a day goes on: there is no second one); any other step that does is reported, and
the next one runs. No wrong answer is timed. A tool that is missing or does not work is reported and left out.
"""

import argparse
import csv
import functools
import json
import pathlib
import subprocess
import sys
import traceback

from bench import verdict
from bench.steps import ROOT, Outcome, Step, execute, run

REPEATS = 50
HOURS = 6 * 3600.0  # a step's limit where the run has none
RECORDS, LOGS = ROOT / "bench" / "records", ROOT / "build" / "bench-gpu"
CHECKS = "gpu-checks.csv"
RESERVED = 15.0  # seconds of a day for what a stopped step leaves behind, and for the verdict
FAULTS = ("-o", "faulthandler_timeout=40", "--continue-on-collection-errors")
# What a day proves, by process: a fault of the device spoils the rest of its process.
TESTS = {
    "rows": ("tests/test_gpu_rows.py",),
    "loss": ("tests/test_gpu_loss.py", "tests/test_integrations_flash_attention.py"),
    "segments": ("tests/test_segments_gpu.py",),
    "anchor": ("tests/test_anchor_cuda.py",),
}


def steps_of(out: pathlib.Path, kept: pathlib.Path, device: str) -> dict[str, Step]:
    """Every step by name, with logs and reports in `out` and records in `kept`; on a CPU (to try the run itself) with small shapes."""
    python, on_gpu = (sys.executable, "-m"), device == "cuda"

    def tests(name: str, seconds: float, least: float) -> Step:
        files = ("-p", "bench.progress", "--progress", str(out / f"tests-{name}.jsonl"), f"--junitxml={out / f'tests-{name}.xml'}")
        command = (*python, "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *FAULTS, *files, *TESTS[name])
        about = f"the tests that need a GPU: {', '.join(TESTS[name])}"
        return Step(f"tests-{name}", about, command, environment=on, seconds=seconds, least=least)

    def sanitizer(tool: str, about: str) -> Step:
        options = ("--tool", tool, "--error-exitcode", "99", "--target-processes", "application-only", "--report-api-errors", "no")
        # Without torch's cache every tensor is an allocation of its own, so that a byte past its end is seen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        program = (*options, sys.executable)
        probe = (*program, "-c", f"import torch; print(torch.ones(2, device='{device}').sum().item())")
        return Step(tool, about, (*program, "-m", *kernels), "compute-sanitizer", alone, probe=probe, seconds=120, least=60)

    on = {} if on_gpu else {"GIGPO_FAST_GPU_TESTS_ON": device}
    kernels = ("bench.kernels", "--device", device)
    repeats, small = (REPEATS, "gpu") if on_gpu else (2, "tiny")
    timings = ("pytest", "bench", "--benchmark-only", "--shapes", small, "-q", "--record", str(kept / "gpu.csv"))
    steps = (
        Step("machine", "what this machine has", (*python, "bench.about", str(out / "machine.json"), "--device", device),
             ends=True, seconds=45, least=10),
        Step("doctor", "every operation against the float64 reference", (*python, "gigpo_fast", "doctor", "--selftest"),
             ends=True, seconds=75, least=20),
        tests("rows", 75, 20),
        tests("loss", 110, 30),
        tests("segments", 45, 15),
        tests("anchor", 45, 15),
        Step("shapes", "six shapes: ours, bare matrix products, peers at hand",
             (*python, "bench.quick", "--device", device, "--shapes", small, "--record", str(kept / "gpu.csv")), seconds=150, least=45),
        Step("repeats", f"{repeats} runs of every kernel give the same bits",
             (*python, *kernels, "--repeats", str(repeats), "--report", str(out / "kernels.jsonl")), seconds=60, least=15),
        sanitizer("memcheck", "reads and writes outside of allocations, in every kernel"),
        sanitizer("racecheck", "hazards in shared memory, in every kernel"),
        Step("timings", "every peer at every GPU shape", (*python, *timings)),
        Step("plots", "pictures of the record", (*python, "bench.plots", str(kept / "gpu.csv"))),
    )  # fmt: skip
    return {step.name: step for step in steps}


def main(arguments: list[str] | None = None) -> int:
    """Run the steps asked for; 0 if all that ran went well, 1 if one found something wrong, 2 without a CUDA device."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own, extra = (arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]) if "--" in arguments else (arguments, [])
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(steps_of(LOGS, RECORDS, "cuda"))
    parser.add_argument("--steps", type=functools.partial(_chosen, names), help=f"of {', '.join(names)}; in this order")
    parser.add_argument("--check", action="store_true", help="only say whether there is a CUDA device")
    parser.add_argument("--out", type=pathlib.Path, help="folder of all files (default: records in bench/records, logs in build/bench-gpu)")
    parser.add_argument("--minutes", type=float, help="of all steps together; the last ones are dropped where they do not suffice")
    parser.add_argument("--day", action="store_true", help="a sitting on a borrowed machine: no step ends it, and no timings, plots")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the run itself, small, without a GPU")
    options = parser.parse_args(own)
    out, kept = ((options.out or default).resolve() for default in (LOGS, RECORDS))
    for folder in (out, kept):
        folder.mkdir(parents=True, exist_ok=True)
    if options.check:
        ran = subprocess.run([sys.executable, "-m", "bench.about", str(out / "machine.json")], cwd=ROOT, check=False)
        return ran.returncode
    steps = steps_of(out, kept, options.device)
    left_out = ("timings", "plots") if options.day else ("shapes",)
    chosen = [steps[name] for name in options.steps or [name for name in names if name not in left_out]]
    chosen = [step._replace(command=(*step.command, *extra)) if step.name == "timings" else step for step in chosen]
    if options.day:
        # A sanitizer is slow: two dtypes launch every kernel.
        brief = {step.name: ("--dtypes", "float32,bfloat16") if step.tool else () for step in chosen}
        chosen = [step._replace(ends=step.name == "machine", command=(*step.command, *brief[step.name])) for step in chosen]
    if options.minutes is None:
        chosen = [step._replace(seconds=HOURS) for step in chosen]
    outcomes = sitting(chosen, out, kept, options.minutes)
    no_device = any(outcome.step == "machine" and outcome.failed for outcome in outcomes)
    return 2 if no_device else int(any(outcome.failed for outcome in outcomes))


def sitting(steps: list[Step], out: pathlib.Path, kept: pathlib.Path, minutes: float | None) -> list[Outcome]:
    """Run the steps, with their outcomes logged and the verdict written anew after each: what stops the run leaves the last one."""
    for path in (*out.glob("*.log"), *out.glob("*.jsonl"), *out.glob("tests-*.xml"), out / "machine.json"):
        if path.name != "run.log":  # which scripts/gpu_day.sh is writing
            path.unlink(missing_ok=True)  # of an earlier run
    outcomes: list[Outcome] = []

    def seen(outcome: Outcome) -> None:
        outcomes.append(outcome)
        _log(outcome, _about(out), kept / CHECKS)
        try:
            (out / "verdict.md").write_text(verdict.text(out, kept / "gpu.csv", outcomes, minutes), encoding="utf-8")
        except Exception:  # the run matters more than its summary; all that it is made from is in the folder
            (out / "verdict.md").write_text(f"# Verdict\n\nThe summary failed:\n\n{traceback.format_exc()}\n", encoding="utf-8")

    seconds = None if minutes is None else 60 * minutes - RESERVED
    run(steps, execute=lambda step, limit: execute(step, limit, out), seconds=seconds, seen=seen)
    print(f"verdict: {out / 'verdict.md'}")
    return outcomes


def _about(out: pathlib.Path) -> dict:
    path = out / "machine.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _chosen(names: list[str], text: str) -> list[str]:
    wanted = text.split(",")
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown steps {unknown}; choose from {names}")
    return [name for name in names if name in wanted]


def _log(outcome: Outcome, about: dict, path: pathlib.Path) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(("date", "commit", "device", "torch", "triton", *Outcome._fields))
        where = [about.get(name, "unknown") for name in ("date", "commit", "device", "torch", "triton")]
        writer.writerow((*where, outcome.step, outcome.result, round(outcome.seconds)))


if __name__ == "__main__":
    sys.exit(main())
