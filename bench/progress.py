"""A pytest plugin: one JSON line a test, written as it begins and as it ends, with the kernels that it launched.

pytest -p bench.progress --progress tests.jsonl

A run that hangs or is killed has written what it found, and which test was the last, and what that had launched.
"""

import json
import pathlib

import pytest

from bench import launches

_file = pytest.StashKey[pathlib.Path]()


def pytest_addoption(parser):
    parser.addoption("--progress", metavar="JSONL", help="append a line a test to this file, at once")


def pytest_configure(config):
    if config.getoption("--progress"):
        config.stash[_file] = pathlib.Path(config.getoption("--progress"))
        launches.watched()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    launched = launches.watched()
    launched.clear()
    begun = lambda: _write(item.config, {"name": item.nodeid, "result": "begun", "kernels": sorted(launched)})  # noqa: E731
    launched.told = begun
    begun()
    try:
        return (yield)
    finally:
        launched.told = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    bad = report.failed or (report.when == "setup" and report.skipped)
    if report.when == "call" or bad:
        note = "" if report.passed else _message(report)
        line = {"name": item.nodeid, "result": report.outcome, "seconds": round(report.duration, 2), "note": note}
        _write(item.config, line | {"kernels": sorted(launches.watched())})
    return report


def _message(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _write(config, line: dict) -> None:
    path = config.stash.get(_file, None)
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
