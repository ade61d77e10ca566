"""The machinery of the benchmarks: shapes are what they say, wrong answers do not count, records and plots hold what was measured."""

import math
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import torch

from bench import exact, measure, peers, records, report, shapes, timing
from bench.peers import Peer
from bench.problems import PROBLEMS

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ALL = [(table, problem, shape) for table, problems in shapes.TABLES.items() for problem, some in problems.items() for shape in some]
AGENT = next(shape for shape in shapes.TABLES["tiny"][shapes.LINEAR] if shape.name == "tiny agent")
MACHINE = records.Machine("2026-01-02 03:04", "abc1234", "a machine, with a comma", 2, "2.13.0", "none", "0.8")


@pytest.fixture(scope="module")
def batch():
    return shapes.policy_batch(AGENT, CPU)


@pytest.fixture
def case():
    return measure.Case(PROBLEMS[shapes.LINEAR], AGENT, CPU)


class FakeBenchmark:
    """What measure.peer uses of pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info, self.stats, self.called = {}, None, 0

    def pedantic(self, function, *, setup, rounds, warmup_rounds):
        for _ in range(rounds):
            setup()
            function()
            self.called += 1
        self.stats = type("Stats", (), {"stats": type("Inner", (), {"median": 3.0})})


def row(**changes) -> records.Record:
    sizes = ("linear_policy_loss", "small", 1280, 256, 16000, "float32", 0.5, 0.7, False)
    return records.Record(*sizes, "eager", "2.13.0", 0.25, 0.125, 2.0, 1 << 20, 1e-7, 2e-6, None, None)._replace(**changes)


# shapes


@pytest.mark.parametrize("table, problem, shape", ALL, ids=lambda value: getattr(value, "name", value))
def test_masks_have_the_share_that_the_shape_says(table, problem, shape):
    mask = shapes._turns(shape, CPU)
    assert mask.shape == (shape.rows, shape.tokens)
    assert int(mask.sum()) == shape.scored == int(mask[0].sum()) * shape.rows
    assert abs(shape.scored / mask.numel() - shape.trained) <= 1 / shape.tokens
    assert abs(1 - shape.idle_rows / shape.rows - shape.active) <= 0.5 / shape.rows
    starts = int((mask[0].int().diff(prepend=torch.zeros(1, dtype=torch.int32)) == 1).sum())
    assert starts == (1 if shape.trained == 1 else 2), "turns are contiguous"


def test_the_table_covers_what_was_asked_for():
    for table in ("cpu", "gpu"):
        shares = {(shape.trained, shape.active) for shape in shapes.TABLES[table][shapes.LINEAR]}
        assert shares >= {(m, a) for m in (1.0, 0.5, 0.25) for a in (1.0, 0.7, 0.3)}
        assert all(problem in shapes.TABLES[table] for problem in PROBLEMS)
        assert any(shape.frozen for shape in shapes.TABLES[table][shapes.LINEAR])
        for some in shapes.TABLES[table].values():
            assert len({shape.name for shape in some}) == len(some)
    assert any(shape.dtype == "bfloat16" for shape in shapes.TABLES["cpu"][shapes.LINEAR])
    on_gpu = [shape for table, _, shape in ALL if table == "gpu"]
    assert {shape.rows * shape.tokens for shape in on_gpu} == {8192, 16384, 32768}
    assert {shape.hidden for shape in on_gpu} == {2048, 4096, 5120}
    assert {shape.vocabulary for shape in on_gpu} == {128256, 151936}
    dense, agent = shapes.TABLES["cpu"][shapes.LINEAR][:2]
    assert (dense.name, agent.name) == ("dense", "agent")
    assert all((shape.rows * shape.tokens, shape.hidden, shape.vocabulary) == (4096, 512, 32000) for shape in (dense, agent))


def test_a_batch_has_idle_rows_and_clipped_tokens(batch):
    mask, active = batch.mask, batch.advantages[batch.mask] != 0
    assert float(active.double().mean()) == pytest.approx(AGENT.active)
    assert torch.equal(batch.advantages, batch.advantages[:, :1].expand_as(batch.advantages))
    assert torch.equal(mask.sum(1), mask.sum(1)[:1].expand(AGENT.rows))
    logits = batch.hidden.detach().double() @ batch.weight.detach().double().T
    log_probs = logits.log_softmax(-1).gather(-1, batch.token_ids[..., None])[..., 0]
    log_ratio = log_probs - batch.old_log_probs
    for bound in (math.log(1 - shapes.CLIP), math.log(1 + shapes.CLIP)):
        assert float((log_ratio - bound).abs().min()) > 0.99 * shapes.MARGIN
    idle_by_clip = ((batch.advantages > 0) & (log_ratio > math.log(1.2))) | ((batch.advantages < 0) & (log_ratio < math.log(0.8)))
    assert int((idle_by_clip & mask).sum()) >= 3
    # sampled from the policy: their mean log-prob is minus the entropy, far from that of tokens drawn evenly
    entropy = -(logits.log_softmax(-1).exp() * logits.log_softmax(-1)).sum(-1).mean()
    assert abs(float(log_probs.mean() + entropy)) < 0.3
    assert float(log_probs.mean() - logits.log_softmax(-1).mean()) > 1


def test_frozen_and_low_precision_batches():
    for shape in shapes.TABLES["tiny"][shapes.SCORES]:
        made = shapes.scored_batch(shape, CPU)
        assert made.weight.requires_grad != shape.frozen and made.hidden.requires_grad
        assert set(made.leaves) == ({"hidden"} if shape.frozen else {"hidden", "weight"})
        assert made.hidden.dtype == made.weight.dtype == getattr(torch, shape.dtype)
        assert made.hidden.shape == (shape.scored, shape.hidden) and made.upstream.dtype == torch.float32
        assert int((made.upstream == 0).sum()) == shape.idle_rows * shape.scored // shape.rows


# the exact answer, and what is refused


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_exact_answer_is_that_of_autograd_in_float64(problem, monkeypatch):
    monkeypatch.setattr(exact, "CHUNK_ELEMENTS", 7 * AGENT.vocabulary)  # several chunks and a remainder
    made = PROBLEMS[problem].batch(AGENT, CPU)
    found = PROBLEMS[problem].exact(made)
    leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in made.leaves.items()}
    logits = leaves["logits"] if "logits" in leaves else leaves["hidden"] @ leaves["weight"].T
    log_probs = logits.log_softmax(-1).gather(-1, made.token_ids[..., None])[..., 0]
    if problem == shapes.LINEAR:
        ratio = (log_probs - made.old_log_probs.double()).exp()
        gain = torch.min(ratio * made.advantages, ratio.clamp(0.8, 1.2) * made.advantages)
        value = loss = -gain[made.mask].mean()
    elif problem == shapes.LIKELIHOOD:
        value = loss = -log_probs.mean()
    else:
        value, loss = log_probs, (log_probs * made.upstream).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(found["value"], value.detach(), rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[f"d_{name}"], gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_ours_is_right_and_the_limits_run(problem):
    made = measure.Case(PROBLEMS[problem], AGENT, CPU)
    errors, peak = made.checked(PROBLEMS[problem].ours)
    assert set(errors) == {"value", *(f"d_{name}" for name in made.batch.leaves)}
    assert 0 < errors["value"] < 1e-5 and (peak is None or peak >= 0)
    limits = PROBLEMS[problem].limits(AGENT, made.batch)
    assert len(limits) == (1 if problem == shapes.LOGITS else 2)
    for limit in limits:
        limit.run()


@pytest.mark.parametrize("part", ["value", "d_hidden", "d_weight"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_just_past_its_bound_is_refused(part, dtype):
    wanted = {name: torch.linspace(-3, 2, 50, dtype=torch.float64) for name in ("value", "d_hidden", "d_weight")}
    bound = exact.BOUNDS[dtype][part != "value"]
    for size, right in ((0.9, True), (1.1, False)):
        found = {name: value.clone() for name, value in wanted.items()}
        found[part][20] += size * bound * 3
        if right:
            assert exact.errors(found, wanted, dtype)[part] == pytest.approx(size * bound)
        else:
            with pytest.raises(AssertionError, match=f"its time does not count: {part} errs by"):
                exact.errors(found, wanted, dtype)
    found[part][20] = float("nan")
    with pytest.raises(AssertionError, match=f"{part} errs by nan"):
        exact.errors(found, wanted, dtype)
    with pytest.raises(AssertionError, match=f"{part} errs by nan"):
        exact.errors({**wanted, part: wanted[part][:1]}, wanted, dtype)


def test_the_rule_of_float32_is_the_contract():
    assert exact.BOUNDS["float32"] == (1e-5, 1e-4)


WRONG = {
    "a loss of other tokens": lambda made: PROBLEMS[shapes.LINEAR].ours(made._replace(mask=~made.mask)),
    "no clip": lambda made: PROBLEMS[shapes.LINEAR].ours(made._replace(old_log_probs=made.old_log_probs - 10)),
    "no gradient of the head": lambda made: PROBLEMS[shapes.LINEAR].ours(made._replace(weight=made.weight.detach())),
    "twice the gradient": lambda made: 2 * (loss := PROBLEMS[shapes.LINEAR].ours(made)) - loss.detach(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_peer_is_neither_timed_nor_kept(case, wrong):
    benchmark, kept = FakeBenchmark(), []
    with pytest.raises(AssertionError, match="wrong answer, so its time does not count"):
        measure.peer(benchmark, case, Peer("wrong", lambda device: WRONG[wrong]), kept.append)
    assert benchmark.called == 0 and not kept


def test_a_right_peer_is_kept_with_its_errors(case):
    benchmark, kept = FakeBenchmark(), []
    eager = PROBLEMS[shapes.LINEAR].peers["eager"]
    measure.peer(benchmark, case, eager, kept.append, least_rounds=2)
    (found,) = kept
    assert benchmark.called >= 2 and benchmark.extra_info["error"]["d_weight"] == found.error_d_weight < 1e-4
    assert (found.peer, found.shape, found.tokens, found.seconds) == ("eager", "tiny agent", 160, 3.0)
    assert 0 < found.ours_seconds < 0.9 and found.ratio == pytest.approx(3.0 / found.ours_seconds) and found.error_d_logits is None
    kept.clear()
    measure.ours(benchmark, case, kept.append, least_rounds=2)
    assert [record.peer for record in kept] == [records.OURS, "bare GEMMs", "bare GEMMs, idle rows forward only"]
    assert kept[0].ratio == 1 and kept[1].error_value is None


def test_inputs_that_a_peer_overwrites_are_put_back():
    made = measure.Case(PROBLEMS[shapes.LOGITS], shapes.TABLES["tiny"][shapes.LOGITS][0], CPU)
    before = made.batch.logits.detach().clone()

    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, ids):
            assert torch.equal(logits, before), "a round began with destroyed inputs"
            log_p = logits.log_softmax(-1)
            ctx.save_for_backward(logits.detach(), log_p, ids)
            return log_p.gather(1, ids[:, None])[:, 0]

        @staticmethod
        def backward(ctx, upstream):
            logits, log_p, ids = ctx.saved_tensors
            logits.copy_(-log_p.exp()).scatter_add_(1, ids[:, None], torch.ones_like(logits[:, :1])).mul_(upstream[:, None])
            return logits, None

    kept = []
    peer = Peer("in place", lambda device: InPlace.apply, overwrites=True)
    measure.peer(FakeBenchmark(), made, peer, kept.append, least_rounds=3)
    assert len(kept) == 1 and torch.equal(made.batch.logits, before)


def test_peak_memory_counts_what_is_left_behind_and_nothing_earlier():
    left = []
    torch.ones(128 << 20)  # 512 MiB, freed at once
    peak = timing.peak_bytes(lambda: left.append(torch.ones(16 << 20)), CPU)
    if peak is None:
        pytest.skip("this kernel does not say how much memory a process takes")
    assert 60 << 20 <= peak <= 200 << 20


# peers


def test_a_missing_peer_skips_with_its_install_line():
    def make(device):
        import a_package_that_nobody_has  # noqa: F401

    with pytest.raises(pytest.skip.Exception, match=r"somebody: pip install some-package \(No module named 'a_package_that_nobody_has'\)"):
        Peer("somebody", make, package="some-package").load(AGENT, CPU)


def test_every_peer_runs_or_says_why_not():
    names = {name for problem in PROBLEMS.values() for name in problem.peers}
    assert names >= {"eager", "eager_compacted", "compiled", "compiled_compacted", "torch_linear_ce", "liger_grpo", "liger_triton_grpo"}
    assert names >= {"liger_scaled_ce", "trl", "verl_torch", "verl_triton", "cce_exact", "cce_filtered", "flash_attn", "unsloth"}
    for problem in PROBLEMS.values():
        for name, peer in problem.peers.items():
            assert peer.name == name
            try:
                assert callable(peer.load(AGENT, CPU))
                assert not peer.gpu
            except pytest.skip.Exception as skipped:
                assert re.search(rf"pip install {peer.package}|needs a CUDA device|needs a C\+\+ compiler", str(skipped)), skipped


def test_compacting_peers_leave_dense_batches_to_their_twins():
    dense = AGENT._replace(trained=1.0)
    with pytest.raises(pytest.skip.Exception, match="every token is trained"):
        PROBLEMS[shapes.LINEAR].peers["eager_compacted"].load(dense, CPU)
    with pytest.raises(pytest.skip.Exception, match="torch_linear_ce is compared in float32 only"):
        PROBLEMS[shapes.LINEAR].peers["torch_linear_ce"].load(AGENT._replace(dtype="bfloat16"), CPU)


def test_compiled_peers_stay_compiled_at_any_number_of_shapes(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, *, dynamic: function)
    before = torch._dynamo.config.recompile_limit
    limit = lambda: (torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit)  # noqa: E731
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    assert peers.compiled(limit, CPU)() == (256, True) and torch._dynamo.config.recompile_limit == before


def test_compiled_peers_skip_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(pytest.skip.Exception, match=r"torch.compile needs a C\+\+ compiler on a CPU: .*compiler"):
        PROBLEMS[shapes.LINEAR].peers["compiled"].load(AGENT, CPU)


# records, table


def test_rows_are_written_and_read_back(tmp_path):
    path = tmp_path / "new" / "cpu.csv"
    first, second = row(), row(peer="gigpo_fast", ratio=1.0, peak_bytes=None, frozen=True, error_d_weight=3e-5)
    records.append(path, MACHINE, [first])
    records.append(path, MACHINE, [second])
    assert records.read(path) == [(MACHINE, first), (MACHINE, second)]
    assert path.read_text().count("problem") == 1 and tuple(path.read_text().splitlines()[0].split(",")) == records.COLUMNS


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("date,peer\n1,eager\n")
    with pytest.raises(ValueError, match="has other columns than .*move it away"):
        records.append(path, MACHINE, [row()])
    assert path.read_text() == "date,peer\n1,eager\n"


def test_the_machine_is_described(tmp_path):
    where = records.machine(CPU)
    assert where.torch == torch.__version__ and where.device and where.threads == torch.get_num_threads()
    assert re.fullmatch("no git, sources [0-9a-f]{12}", records.commit(tmp_path))


def test_the_table_has_ours_first_and_the_losing_ratios():
    lines = report.table([row(), row(peer="faster", ratio=0.8), row(peer="gigpo_fast", ratio=1.0), row(problem="other")])
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["gigpo_fast", "faster", "eager", "eager"]
    assert "0.80x" in "\n".join(lines) and "50% trained, 70% of them active" in lines[1]


# the suites themselves


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_stopped_prints_its_ratios_and_writes_nothing(stop):
    pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
    written = {path.name: path.stat().st_mtime_ns for path in records.FOLDER.iterdir()}
    command = [sys.executable, "-m", "pytest", "bench/test_advantage.py", "-v", "--benchmark-only", "--shapes", "tiny"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, "-p", "no:cacheprovider", "-p", "no:xdist"], **options) as running:
        said = ""
        while "PASSED" not in said and (line := running.stdout.readline()):
            said += line
        running.send_signal(getattr(signal, stop))
        said += running.communicate(timeout=120)[0]
    assert running.returncode == 2 and "KeyboardInterrupt" in said, said
    assert "ratios (peer's time / ours" in said and re.search(r"steps, in order, .* ms: +\d+\.\d\d x loops", said), said
    assert {path.name: path.stat().st_mtime_ns for path in records.FOLDER.iterdir()} == written


def test_a_suite_runs_prints_and_records(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
    path = tmp_path / "tiny.csv"
    chosen = "(test_ours or eager) and (agent or token_log_probs)"
    command = [sys.executable, "-m", "pytest", "bench/test_linear_policy_loss.py", "bench/test_token_log_probs.py", "-q", "-k", chosen]
    options = ["--benchmark-only", "--shapes", "tiny", "--record", str(path), "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command + options, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "ratios (peer's time / ours" in ran.stdout and re.search(r"eager +\d+\.\d\dx", ran.stdout)
    found = [record for _, record in records.read(path)]
    assert {(record.problem, record.peer) for record in found} == {
        ("linear_policy_loss", "gigpo_fast"),
        ("linear_policy_loss", "bare GEMMs"),
        ("linear_policy_loss", "bare GEMMs, idle rows forward only"),
        ("linear_policy_loss", "eager"),
        ("linear_policy_loss", "eager_compacted"),
        ("token_log_probs", "gigpo_fast"),
        ("token_log_probs", "1.5 copies of the logits"),
        ("token_log_probs", "eager"),
    }
    assert all(record.seconds > 0 and record.ratio > 0 for record in found)
    assert all((record.error_value is None) == (record.peer.startswith(("bare", "1.5"))) for record in found)
