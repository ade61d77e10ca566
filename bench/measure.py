"""One measurement: a right answer, its memory, its time in turns with ours, and the record of it."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from bench import exact
from bench.peers import Peer, version_of
from bench.problems import Limit, Problem
from bench.records import OURS, Record
from bench.shapes import Shape
from bench.timing import finished, paired, peak_bytes, seconds_of

SECONDS = 1.0  # that the rounds of a pair may take, within these numbers of rounds
MOST_ROUNDS = 9


def exact_products() -> None:
    """Matrix products are exact: no TF32, no reduced sums."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


class Case:
    """A problem at a shape: the batch and its float64 answer, computed once."""

    def __init__(self, problem: Problem, shape: Shape, device: torch.device) -> None:
        self.problem, self.shape, self.device = problem, shape, device
        self.batch = problem.batch(shape, device)
        self.wanted = problem.exact(self.batch)
        self.own_seconds: float | None = None  # of a warm step of ours, once there was one

    def step(self, function: Callable) -> torch.Tensor:
        """Forward and backward as one unit; the gradients are on the leaves afterwards."""
        for leaf in self.batch.leaves.values():
            leaf.grad = None
        found = function(*self.batch.arguments)
        found.backward(self.batch.upstream if found.dim() else None)
        return found.detach()

    def checked(self, function: Callable) -> tuple[dict[str, float], int | None]:
        """The errors of one step and its peak memory. Raises AssertionError if the answer is wrong."""
        found = {}
        for leaf in self.batch.leaves.values():
            leaf.grad = None  # so that the gradients a step leaves behind are counted
        peak = peak_bytes(lambda: found.update(value=self.step(function)), self.device)
        gradients = {f"d_{name}": leaf.grad for name, leaf in self.batch.leaves.items()}
        missing = [name for name, value in gradients.items() if value is None]
        assert not missing, f"wrong answer, so its time does not count: no {missing}"
        return exact.errors(found | gradients, self.wanted, self.shape.dtype), peak

    def timed(self, function: Callable) -> Callable[[], None]:
        return finished(lambda: self.step(function), self.device)

    def warm_seconds_of_ours(self) -> float:
        if self.own_seconds is None:
            own = self.timed(self.problem.ours)
            own()
            self.own_seconds = seconds_of(own)
        return self.own_seconds

    def record(self, name: str, version: str, seconds: float, ours: float, peak: int | None, errors: dict[str, float]) -> Record:
        shape = self.shape
        sizes = (shape.name, shape.rows * shape.tokens, shape.hidden, shape.vocabulary, shape.dtype, shape.trained, shape.active)
        kinds = [errors.get(kind) for kind in ("value", "d_hidden", "d_weight", "d_logits")]
        return Record(self.problem.name, *sizes, shape.frozen, name, version, seconds, ours, seconds / ours, peak, *kinds)


def peer(benchmark, case: Case, peer: Peer, keep: Callable[[Record], None], *, least_rounds: int = 3) -> None:
    """Benchmark a peer in turns with ours; a wrong answer fails, memory that does not suffice skips."""
    function = peer.load(case.shape, case.device)
    theirs, own = case.timed(function), case.timed(case.problem.ours)
    with _restored(case, peer) as restore:
        try:
            if peer.compiles or case.device.type == "cuda":  # where kernels compile, tune and load
                theirs()
                restore()
            started = time.perf_counter()
            errors, peak = case.checked(function)
            taken = time.perf_counter() - started
            restore()
            rounds = _rounds(case.warm_seconds_of_ours() + taken, least_rounds)
            _describe(benchmark, case, errors, peak)
            paired(benchmark, theirs, lambda: (restore(), own()), rounds=rounds, warm=True)
        except torch.OutOfMemoryError:
            pytest.skip(f"{peer.name}: out of memory at {case.shape.name}")
    if benchmark.stats is not None:
        seconds, ours = benchmark.stats.stats.median, benchmark.extra_info["ours_median_seconds"]
        keep(case.record(peer.name, peer.version(), seconds, ours, peak, errors))


def ours(benchmark, case: Case, keep: Callable[[Record], None], *, least_rounds: int = 3) -> None:
    """Benchmark ours, in turns with the physical limits."""
    own, own_seconds = case.timed(case.problem.ours), case.warm_seconds_of_ours()
    errors, peak = case.checked(case.problem.ours)
    limits = [limit._replace(run=finished(limit.run, case.device)) for limit in case.problem.limits(case.shape, case.batch)]
    taken: dict[Limit, list[float]] = {limit: [] for limit in limits}

    def run_limits() -> None:
        for limit, seconds in taken.items():
            seconds.append(seconds_of(limit.run))

    rounds = _rounds(own_seconds + seconds_of(run_limits), least_rounds)
    for seconds in taken.values():
        seconds.clear()  # the first one is cold
    _describe(benchmark, case, errors, peak)
    benchmark.pedantic(own, setup=run_limits, rounds=rounds, warmup_rounds=0)
    if benchmark.stats is None:
        return
    median = benchmark.stats.stats.median
    keep(case.record(OURS, version_of("gigpo-fast"), median, median, peak, errors))
    for limit, seconds in taken.items():
        keep(case.record(limit.name, torch.__version__, limit.passes * statistics.median(seconds), median, None, {}))


def _describe(benchmark, case: Case, errors: dict[str, float], peak: int | None) -> None:
    benchmark.group = f"{case.problem.name}: {case.shape.name}"
    benchmark.extra_info |= {"error": errors, "peak_bytes": peak, **case.shape._asdict()}


def _rounds(pair_seconds: float, least: int) -> int:
    return max(least, min(MOST_ROUNDS, int(SECONDS / max(pair_seconds, 1e-9))))


class _restored:
    """Inputs that a peer overwrites are put back before each round and at the end."""

    def __init__(self, case: Case, peer: Peer) -> None:
        leaves = case.batch.leaves.values() if peer.overwrites else ()
        self.saved = [(leaf, leaf.detach().clone()) for leaf in leaves]

    def __call__(self) -> None:
        for leaf, original in self.saved:
            leaf.grad = None  # it may be the leaf's own memory
            leaf.detach().copy_(original)

    def __enter__(self) -> "_restored":
        return self

    def __exit__(self, *_) -> None:
        self()
