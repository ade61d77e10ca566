"""A sitting on a GPU machine, tried without one: order, limits, what a short budget drops, and the verdict of injected failures."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import torch

from bench import about, gpu, launches, quick, records, steps, verdict
from bench.steps import Outcome, Step

ROOT = pathlib.Path(__file__).resolve().parent.parent
DAY = [step for name, step in gpu.steps_of(pathlib.Path("out"), pathlib.Path("out"), "cuda").items() if name not in ("timings", "plots")]


def python(name: str, code: str, **changes) -> Step:
    return Step(name, f"step {name}", (sys.executable, "-c", code), **changes)


class Clock:
    """Seconds that pass only where a step takes them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def planned(seconds: float, takes) -> list[Outcome]:
    """The outcomes of a day of which each step takes `takes(step)` seconds, or all that it may have."""
    clock = Clock()

    def execute(step, limit):
        assert limit <= step.seconds
        clock.now += min(limit, takes(step))
        return "ok"

    outcomes = steps.run(DAY, execute=execute, seconds=seconds, clock=clock)
    assert clock.now <= seconds
    return outcomes


def ran(outcomes) -> list[str]:
    return [outcome.step for outcome in outcomes if outcome.result == "ok"]


# order and limits


def test_a_day_goes_from_the_answers_to_the_times_to_the_sanitizers():
    names = [step.name for step in DAY]
    assert names == ["machine", "doctor", *(f"tests-{name}" for name in gpu.TESTS), "shapes", "repeats", "memcheck", "racecheck"]
    assert all(step.probe and step.tool == "compute-sanitizer" for step in DAY[-2:])
    assert all("--report-api-errors no" in " ".join(step.command) for step in DAY[-2:])
    assert all(0 < step.least < step.seconds <= 150 for step in DAY)
    assert all(any(part.startswith("--junitxml=") for part in step.command) for step in DAY if step.name.startswith("tests-"))


def test_every_test_for_a_gpu_is_in_a_step():
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^(pytestmark = |@).*\b(gpu\.marks|mark\.gpu)\b|marks=.*mark\.gpu\b", path.read_text(), re.M)
    }
    assert marked == {file for files in gpu.TESTS.values() for file in files}


@pytest.mark.parametrize("minutes", [9, 6, 4, 2, 1])
def test_a_day_keeps_its_budget_though_every_step_takes_all_it_may(minutes):
    outcomes = planned(60 * minutes - gpu.RESERVED, lambda step: 1e9)
    # what is dropped is at the end, so that what matters most is there
    assert ran(outcomes) == [step.name for step in DAY][: len(ran(outcomes))]
    assert all(re.match(r"not run: \d+ s were left, it needs \d+", outcome.result) for outcome in outcomes if outcome.result != "ok")
    if minutes == 9:
        assert len(ran(outcomes)) == len(DAY)
    if minutes == 4:
        assert ran(outcomes)[-1] == "repeats"
    if minutes == 2:
        assert ran(outcomes)[-1].startswith("tests-")


def test_time_that_quick_steps_leave_goes_to_those_that_a_short_budget_would_drop():
    assert len(ran(planned(4 * 60 - gpu.RESERVED, lambda step: min(step.least, 20)))) == len(DAY)


def test_a_step_that_hangs_is_stopped_with_its_children_and_what_it_printed_is_kept(tmp_path):
    children = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(p.pid)"
    hangs = python("hangs", children + "; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('here'); time.sleep(60)")
    steps_ = [hangs._replace(seconds=2.0), python("next", "print('after')", seconds=30)]
    started = time.monotonic()
    outcomes = steps.run(steps_, execute=lambda step, limit: steps.execute(step, limit, tmp_path), seconds=60)
    assert time.monotonic() - started < 20
    assert [outcome.result for outcome in outcomes] == ["stopped after 2 s, its limit", "ok"] and outcomes[0].failed
    pid, here = (tmp_path / "hangs.log").read_text().split()[:2]
    assert here == "here"
    assert not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_red_step_hides_nothing_but_no_device_ends_all(tmp_path):
    some = [python("machine", "", ends=True), python("a", "raise SystemExit(3)"), python("b", "")]
    execute = lambda step, limit: steps.execute(step, limit, tmp_path)  # noqa: E731
    assert [outcome.result for outcome in steps.run(some, execute=execute)] == ["ok", "wrong (exit code 3)", "ok"]
    some[0] = python("machine", "raise SystemExit(2)", ends=True)
    results = [outcome.result for outcome in steps.run(some, execute=execute)]
    assert results == ["wrong (exit code 2)", *["not run: machine found something wrong"] * 2]
    slow = [python("machine", "import time; time.sleep(9)", ends=True, seconds=1.0), some[2]]
    assert [outcome.result for outcome in steps.run(slow, execute=execute)] == ["stopped after 1 s, its limit", "ok"]


def test_what_the_page_on_the_machine_cannot_say_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(about, "about", lambda device: 1 / 0)
    monkeypatch.setattr(about.importlib.util, "find_spec", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert about.main([str(tmp_path / "machine.json"), "--device", "cpu"]) == 0
    assert list(json.loads((tmp_path / "machine.json").read_text()).values()) == ["ZeroDivisionError: division by zero"]
    assert not about._present("trl")


def test_a_step_knows_its_limit_and_finds_the_checkout(tmp_path):
    code = f"import os, gigpo_fast, bench; print(os.environ['{steps.LIMIT}'])"
    assert steps.execute(python("a", code), 17.0, tmp_path) == "ok"
    assert (tmp_path / "a.log").read_text().strip() in ("16", "17")


def _tool(folder: pathlib.Path, script: str) -> dict[str, str]:
    path = folder / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "script, wanted",
    [
        ("echo 'Device not supported'; exit 1", r"left out: compute-sanitizer fails with 1 on one line of Python \(Device not supported\)"),
        ("sleep 30", r"left out: compute-sanitizer does not end on one line of Python \(it says nothing\)"),
        ('shift 8; case "$*" in *ones*) exit 0;; esac; echo found; exit 99', r"wrong \(exit code 99\)"),
        ("exit 0", "ok"),
    ],
)
def test_a_sanitizer_that_cannot_work_here_is_left_out_and_one_that_can_is_believed(script, wanted, tmp_path, monkeypatch):
    _tool(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    memcheck = next(step for step in DAY if step.name == "memcheck")
    assert re.fullmatch(wanted, steps.execute(memcheck, 3.0, tmp_path))


def test_a_sanitizer_that_is_missing_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda name, path=None: None)
    memcheck = next(step for step in DAY if step.name == "memcheck")
    assert steps.execute(memcheck, 3.0, tmp_path) == "left out: compute-sanitizer is not installed"


# the verdict


TESTS = """
import time
from bench import launches

def test_right(): launches.watched().note("rows_forward_kernel", "scale_kernel")
def test_wrong(): launches.watched().note("scale_kernel"); assert 1 == 2, "wrong result"
def test_hangs(): launches.watched().note("rows_backward_kernel"); time.sleep(60)
"""


def test_the_verdict_names_what_ran_what_is_wrong_and_what_hangs(tmp_path, monkeypatch):
    """One process of tests with all three; a case that differs between runs; a peer-less table; a step after them."""
    (tmp_path / "test_three.py").write_text(TESTS)
    report, out = tmp_path / "tests-three.jsonl", tmp_path
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.progress", "--progress", str(report), str(tmp_path / "test_three.py"))
    case = {"name": "a case", "result": "failed", "note": "loss differs between two of 50 runs", "kernels": ["moments_kernel"]}
    about = {"commit": "abc", "device": "a GPU", "architecture": "sm_90", "absent": ["trl", "verl"]}
    some = [
        python("machine", f"import pathlib; pathlib.Path({str(out / 'machine.json')!r}).write_text({json.dumps(about)!r})"),
        Step("tests-three", "tests", (sys.executable, *command), seconds=12),
        python("repeats", f"import pathlib; pathlib.Path({str(out / 'kernels.jsonl')!r}).write_text({json.dumps(case)!r}); raise SystemExit(1)"),
        python("last", ""),
    ]
    outcomes = gpu.sitting(some, out, out, 1.0)
    assert [outcome.result for outcome in outcomes] == ["ok", "stopped after 12 s, its limit", "wrong (exit code 1)", "ok"]
    text = (out / "verdict.md").read_text()
    lines = dict(re.findall(r"^\| (\w+) \| (.*?) \|", text, re.M))
    assert lines["rows_forward_kernel"] == "run: 1 tests and cases launched it, all right"
    assert re.fullmatch(r"FAILED in 1 of 2: \S*test_three.py::test_wrong", lines["scale_kernel"])
    assert re.fullmatch(r"FAILED in 1 of 1: \S*test_three.py::test_hangs", lines["rows_backward_kernel"])
    assert lines["moments_kernel"] == "FAILED in 1 of 1: a case"
    assert lines["sums_kernel"] == lines["anchor_enter"] == "not launched"
    assert "**something is wrong: repeats, 2 tests and cases; not finished within its limit: tests-three**" in text and "- absent: trl, verl" in text and "- device: a GPU" in text
    assert "test_wrong: failed. AssertionError: wrong result" in text and "test_hangs: not ended" in text
    assert "a case: failed. loss differs between two of 50 runs" in text
    assert len(text.splitlines()) < 70
    logged = (out / gpu.CHECKS).read_text().splitlines()
    assert logged[0] == "date,commit,device,torch,triton,step,result,seconds" and len(logged) == 5


def test_without_a_gpu_nothing_is_called_run():
    found = [{"name": "t", "result": "passed", "note": "", "kernels": ["scale_kernel"]}]
    assert verdict.of_kernel("scale_kernel", found, "interpreted, on a CPU").startswith("interpreted")
    assert set(launches.names()) > {"scale_kernel", "rows_forward_kernel", "anchor_rehash"}


def test_the_script_says_no_device_and_writes_a_verdict_where_python_itself_fails(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    script = ROOT / "scripts" / "gpu_day.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script, tmp_path / "a", "1"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs a CUDA device" in (tmp_path / "a" / "verdict.md").read_text()
    assert "needs a CUDA device" in (tmp_path / "a" / "run.log").read_text()
    environment["PYTHON"] = "no-python-of-this-name"
    done = subprocess.run([script, tmp_path / "b", "1"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 127 and "The run itself failed with 127" in (tmp_path / "b" / "verdict.md").read_text()
    done = subprocess.run([script, tmp_path / "c", "10"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "MINUTES must be 1 to 9, got 10" in done.stderr


# the six shapes


def test_the_shapes_of_a_day_are_six_of_the_table_and_ours_come_first():
    assert len(quick.SHAPES["gpu"]) == 6
    sweeps = list(quick._sweeps("gpu"))
    assert [wanted for *_, wanted in sweeps[:6]] == [[records.OURS]] * 6
    assert not {peer for *_, wanted in sweeps[6:12] for peer in wanted} & set(quick.SLOW)
    assert all(set(wanted) <= set(quick.SLOW) for *_, wanted in sweeps[12:])


def test_what_compiles_is_begun_only_where_enough_time_is_left(monkeypatch):
    begun = []
    monkeypatch.setattr(quick, "_measured", lambda who, case, keep: begun.append(who) or "ok")
    monkeypatch.setattr(quick.measure, "Case", lambda *given: object())
    results = dict(quick.run("gpu", torch.device("cpu"), quick.SLOW_SECONDS - 5, lambda row: None))
    assert begun and not set(begun) & set(quick.SLOW)
    assert {what.split(", ")[2] for what, result in results.items() if result == "not measured: no time left"} <= set(quick.SLOW)


def test_ours_is_measured_against_the_bare_products_and_a_wrong_answer_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(quick.SHAPES, "tiny", quick.SHAPES["tiny"][:1])
    monkeypatch.setattr(quick, "SLOW", tuple(name for name in quick.PROBLEMS["linear_policy_loss"].peers if name != "eager"))
    real, only = quick._sweeps, {"eager", records.OURS}
    monkeypatch.setattr(quick, "_sweeps", lambda table: ((p, s, [who for who in wanted if who in only]) for p, s, wanted in real(table)))
    given = ["--shapes", "tiny", "--device", "cpu", "--record", str(tmp_path / "gpu.csv"), "--seconds", "100"]
    assert quick.main(given) == 0
    assert [row.peer for _, row in records.read(tmp_path / "gpu.csv")] == [records.OURS, "bare GEMMs", "eager"]
    assert quick.main([*given[:-1], "-1"]) == 0
    assert capsys.readouterr().out.count("not measured: no time left") == 2
    problem = quick.PROBLEMS["linear_policy_loss"]
    monkeypatch.setitem(quick.PROBLEMS, problem.name, problem._replace(ours=lambda batch: 1.01 * problem.ours(batch)))
    assert quick.main(given[:4] + given[-2:]) == 1
    assert "FAILED: wrong answer, so its time does not count" in capsys.readouterr().out
