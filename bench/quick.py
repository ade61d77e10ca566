"""Six shapes in two minutes, without pytest-benchmark: ours against the bare matrix products first, then every peer that is at hand.

python -m bench.quick --record OUT/gpu.csv --seconds 110

The same batches, answers, turns and records as `pytest bench`. Every measurement is written as soon as it is made; when the seconds
are over the rest is named. Peers that compile for long come last.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from bench import measure, records, report, shapes
from bench.problems import PROBLEMS
from bench.shapes import LIKELIHOOD, LINEAR, LOGITS, SCORES
from bench.steps import LIMIT

# By importance: where time ends, the last ones are left out.
SHAPES = {
    "gpu": ((LINEAR, "8k m1 a1"), (LINEAR, "16k agent"), (LOGITS, "8k"), (SCORES, "8k"), (LIKELIHOOD, "8k"), (LINEAR, "8k H5120")),
    "tiny": ((LINEAR, "tiny"), (LINEAR, "tiny agent"), (LOGITS, "tiny agent"), (SCORES, "tiny agent"), (LIKELIHOOD, "tiny")),
}
SLOW = ("compiled", "compiled_compacted", "liger_grpo", "liger_grpo_compacted")  # torch.compile takes most of a minute
SLOW_SECONDS = 50.0  # so they are begun only where so much is left
MARGIN = 10.0  # seconds before the limit at which nothing more is begun


class Rounds:
    """What `measure` asks of pytest-benchmark's fixture: run in rounds, keep the median."""

    class Stats(NamedTuple):
        stats: object

    class Inner(NamedTuple):
        median: float

    def __init__(self) -> None:
        self.extra_info: dict = {}
        self.group, self.stats = "", None

    def pedantic(self, function: Callable, *, setup: Callable, rounds: int, warmup_rounds: int) -> None:
        taken = []
        for number in range(warmup_rounds + rounds):
            setup()
            started = time.perf_counter()
            function()
            if number >= warmup_rounds:
                taken.append(time.perf_counter() - started)
        self.stats = self.Stats(self.Inner(sorted(taken)[len(taken) // 2]))


def run(table: str, device: torch.device, seconds: float, keep: Callable[[records.Record], None]) -> Iterator[tuple[str, str]]:
    """(what, result) of each measurement; what the time does not allow is named."""
    until = time.perf_counter() + seconds
    measure.exact_products()
    for problem, name, wanted in _sweeps(table):
        problem, case = PROBLEMS[problem], None
        shape = next(shape for shape in shapes.TABLES[table][problem.name] if shape.name == name)
        for who in wanted:
            what = f"{problem.name}, {shape.name}, {who}"
            if time.perf_counter() > until - (SLOW_SECONDS if who in SLOW and table == "gpu" else 0):
                yield what, "not measured: no time left"
                continue
            try:
                case = case or measure.Case(problem, shape, device)
                yield what, _measured(who, case, keep)
            except Exception as error:  # a device that is out of order says so for each of the rest
                yield what, f"FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        del case
        gc.collect()
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


def _sweeps(table: str) -> Iterator[tuple[str, str, list[str]]]:
    """Ours at every shape, then the peers, then those that compile: what matters most is measured first."""
    for problem, name in SHAPES[table]:
        yield problem, name, [records.OURS]
    for slow in (False, True):
        for problem, name in SHAPES[table]:
            yield problem, name, [peer for peer in PROBLEMS[problem].peers if (peer in SLOW) == slow]


def _measured(who: str, case: measure.Case, keep: Callable[[records.Record], None]) -> str:
    kept: list[records.Record] = []
    both = lambda row: (kept.append(row), keep(row))  # noqa: E731
    try:
        if who == records.OURS:
            measure.ours(Rounds(), case, both)
        else:
            measure.peer(Rounds(), case, case.problem.peers[who], both)
    except pytest.skip.Exception as reason:
        return f"left out: {reason}"
    except AssertionError as error:
        return f"FAILED: {(str(error).splitlines() or [''])[0]}"
    return "; ".join(f"{row.peer} {1e3 * row.seconds:.2f} ms, {row.ratio:.2f} of ours" for row in kept)


def main(arguments: list[str] | None = None) -> int:
    """0 if every measurement of ours that was begun is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="gpu", help="gpu (default), or tiny, which a CPU can do")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--record", type=pathlib.Path, help="append every measurement to this file")
    limit = os.environ.get(LIMIT)
    parser.add_argument("--seconds", type=float, default=float(limit) - MARGIN if limit else 110.0, help="begin nothing after this time")
    options = parser.parse_args(arguments)
    device, rows, failed = torch.device(options.device), [], False
    where = records.machine(device)

    def keep(row: records.Record) -> None:
        rows.append(row)
        if options.record is not None:
            records.append(options.record, where, [row])

    for what, result in run(options.shapes, device, options.seconds, keep):
        failed |= result.startswith("FAILED") and what.endswith(f", {records.OURS}")
        print(f"{what}: {result}", flush=True)
    print("\n".join(report.table(rows)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
