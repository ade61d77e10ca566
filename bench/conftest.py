"""Benchmark set-up: which shapes on which device, one record a measurement, and the ratios printed at the end, the losing ones too."""

import gc
import pathlib
import signal

import pytest
import torch

from bench import records, report
from bench.measure import Case, exact_products
from bench.problems import PROBLEMS
from bench.shapes import TABLES

_lines, _rows = pytest.StashKey[list[str]](), pytest.StashKey[list[records.Record]]()


def pytest_addoption(parser):
    group = parser.getgroup("gigpo_fast benchmarks")
    group.addoption("--shapes", choices=sorted(TABLES), default="cpu", help="the table of shapes to run; gpu shapes run on a CUDA device")
    group.addoption("--large", action="store_true", help="also the sizes that take minutes and gigabytes")
    group.addoption("--record", metavar="CSV", help="append every measurement to this file; without it none is written")


def pytest_configure(config):
    # What `timeout` and schedulers send ends a run as Ctrl-C does: with the ratios so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[_lines], config.stash[_rows] = [], []


def pytest_generate_tests(metafunc):
    problem = PROBLEMS.get(getattr(metafunc.module, "PROBLEM", None))
    if problem is None:
        return
    if "case" in metafunc.fixturenames:
        table = TABLES[metafunc.config.getoption("shapes")][problem.name]
        metafunc.parametrize("case", table, indirect=True, scope="module", ids=lambda shape: shape.name.replace(" ", "-"))
    if "peer" in metafunc.fixturenames:
        metafunc.parametrize("peer", list(problem.peers.values()), ids=list(problem.peers))


@pytest.fixture(scope="session")
def device(pytestconfig):
    """The device of the table of shapes."""
    exact_products()
    if pytestconfig.getoption("shapes") != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.exit("the gpu shapes need a CUDA device, and torch sees none; on a CPU use --shapes cpu", returncode=2)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def case(request, device):
    """A batch with its float64 answer, made once a shape."""
    gc.collect()  # the last shape's tensors, if they hang in a cycle
    return Case(PROBLEMS[request.module.PROBLEM], request.param, device)


@pytest.fixture(scope="session")
def least_rounds(pytestconfig):
    return 1 if pytestconfig.getoption("shapes") == "tiny" else 3


@pytest.fixture(scope="session")
def keep(pytestconfig, device):
    """Call with a Record: it goes into the file at once, and into the table at the end."""
    path, where = pytestconfig.getoption("record"), records.machine(device)

    def record(row: records.Record) -> None:
        pytestconfig.stash[_rows].append(row)
        if path is not None:
            records.append(pathlib.Path(path), where, [row])

    return record


@pytest.fixture
def report_ratio(pytestconfig):
    """Call with a line for the table at the end."""
    return pytestconfig.stash[_lines].append


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.hookimpl(trylast=True)  # the table comes last, below pytest-benchmark's own
def pytest_terminal_summary(terminalreporter, config):
    rows, lines = config.stash[_rows], config.stash[_lines]
    if not rows and not lines:
        return
    terminalreporter.section("ratios (peer's time / ours, medians of interleaved runs; above 1 ours is faster)")
    for line in [*report.table(rows), *lines]:
        terminalreporter.write_line(line)
    on_gpu = config.getoption("shapes") == "gpu"
    where = records.machine(torch.device("cuda" if on_gpu else "cpu"))
    terminalreporter.write_line(f"\n{where.date}, {where.device}, {where.threads} threads, torch {where.torch}, commit {where.commit}")
