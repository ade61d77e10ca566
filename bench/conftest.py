"""Benchmark set-up: one thread setting, progress on the terminal, and the ratios printed at the end, the losing ones too."""

import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # the suites share shapes, peers and timing by plain imports

_ratios: list[str] = []


@pytest.fixture
def report_ratio():
    """Call with a line for the table at the end."""
    return _ratios.append


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    if _ratios:
        terminalreporter.section("ratios (peer's time / ours, medians of interleaved runs; above 1 is faster than the peer)")
        for line in _ratios:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}")


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
