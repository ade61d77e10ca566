"""Other projects' recorded answers: the runner agrees with all that gigpo_fast claims to do, and sees and names what is wrong."""

import gzip
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from tests.oracles import runner
from tests.oracles.adapter import Adapter, Answer
from tests.oracles.compare import compare, error
from tests.oracles.tensors import Case, read_cases

ROOT = pathlib.Path(__file__).resolve().parent.parent
ORACLES = ROOT / "tests" / "data" / "oracles"
ROLLOUTS = ["--rollouts", str(ROOT / "tests" / "data" / "rollouts"), "--rollouts", str(ROOT / "examples" / "rollouts")]

# What must agree: (file, cases, how many there are).
CLAIMED = [
    ("liger_linear_grpo", "^(?!luspo/token)", 36),
    ("liger_linear_grpo_reference", "", 16),
    ("verl_advantage", "^(grpo|grpo_vectorized|rloo)/", 15),
    ("verl_agent_gigpo", "", 16),
    ("verl_agent_gigpo_rollouts", "", 15),
    ("verl_kl", "", 6),
    ("verl_policy_loss", "", 148),
]


@pytest.mark.parametrize("file, cases, count", CLAIMED, ids=[claim[0] for claim in CLAIMED])
def test_claimed_cases_agree(file, cases, count, capsys):
    code = runner.main([str(ORACLES), *ROLLOUTS, "--only", f"{file}={cases}"])
    printed = capsys.readouterr().out
    found = re.match(rf"{file}: {count} of {count} agree, worst error (\S+) of its tolerance\n", printed)
    assert code == 0 and found, printed
    assert 0 < float(found[1]) <= 1  # an error of exactly 0 would mean that nothing was computed
    assert "disagrees" not in printed and "not supported" not in printed


def test_the_command_runs_from_the_root():
    command = [sys.executable, "-m", "tests.oracles", str(ORACLES), "--only", "verl_kl=^k", "--only", "verl_policy_loss=^dro/token-mean/"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "verl_kl: 5 of 5 agree" in ran.stdout and "verl_policy_loss: 3 of 3 agree" in ran.stdout


def test_only_the_listed_cases_need_a_looser_tolerance():
    """Groups of equal scores that float32 means of the peer make unequal, and terms that nearly cancel; nothing else may lean on that."""
    needed = set()
    for file, pattern, _ in CLAIMED:
        adapter = runner.ADAPTERS[file]
        if adapter.looser:
            cases = read_cases(ORACLES / f"{file}.json.gz", [pathlib.Path(folder) for folder in ROLLOUTS[1::2]])
            looser = runner.run([case for case in cases if re.search(pattern, case.name)], adapter).looser
            needed |= {(output, name) for output, names in looser.items() for name in names}
    # Whether the second needs it is for the roundings of the machine to say.
    assert ("advantages", "minigrid/mean_std_norm/1.0/0.5") in needed
    assert needed <= {("advantages", "minigrid/mean_std_norm/1.0/0.5"), ("loss", "vespo/token/0")}


def _copy(folder: pathlib.Path, file: str, change) -> None:
    """A copy of a recorded file with only its first case, changed."""
    with gzip.open(ORACLES / f"{file}.json.gz", "rt") as source:
        recorded = json.load(source)
    recorded["cases"] = recorded["cases"][:2]
    change(recorded["cases"][0])
    with gzip.open(folder / f"{file}.json.gz", "wt") as target:
        json.dump(recorded, target)


@pytest.mark.parametrize(
    "file, output",
    [
        ("verl_policy_loss", "loss"),
        ("verl_policy_loss", "grad_log_probs"),
        ("verl_kl", "kl"),
        ("verl_advantage", "returns"),
        ("liger_linear_grpo", "grad_weight"),
        ("verl_agent_gigpo", "episode_advantages_per_trajectory"),
    ],
)
def test_a_wrong_answer_is_named(file, output, tmp_path, capsys):
    def change(case):
        data = case["outputs"][output]["data"]
        place = max(range(len(data)), key=lambda index: abs(data[index]))
        data[place] *= 1 + 1e-4

    _copy(tmp_path, file, change)
    name = read_cases(tmp_path / f"{file}.json.gz", [])[0].name
    assert runner.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}: 1 of 2 agree, worst error ")
    assert [line for line in lines if "disagrees" in line][0].startswith(f"  disagrees: {name}: {output}")


@pytest.mark.parametrize("metric", ["actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl"])
def test_a_wrong_metric_is_named(metric, tmp_path, capsys):
    def change(case):
        case["outputs"]["metrics"][metric] += 1 / 64

    _copy(tmp_path, "verl_policy_loss", change)
    assert runner.main([str(tmp_path)]) == 1
    assert f"disagrees: vanilla/token-mean/mixed: {metric} is" in capsys.readouterr().out


def test_wrong_anchor_ids_are_named(tmp_path, capsys):
    def change(case):
        case["outputs"]["anchor_ids"][-1] -= 1

    _copy(tmp_path, "verl_agent_gigpo", change)
    assert runner.main([str(tmp_path)]) == 1
    assert "disagrees: synthetic/0/mean_norm: anchor_ids[" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path, capsys):
    """A method without blocks, a file without an adapter and a rollout file that is not there: none passes silently, none stops the run."""
    _copy(tmp_path, "verl_policy_loss", lambda case: case["config"].update(loss_mode="novel"))
    _copy(tmp_path, "verl_agent_gigpo_rollouts", lambda case: None)
    (tmp_path / "verl_kl.json.gz").write_bytes((ORACLES / "verl_kl.json.gz").read_bytes())
    (tmp_path / "another_peer.json.gz").write_bytes((ORACLES / "verl_kl.json.gz").read_bytes())
    (tmp_path / "frameworks").mkdir()
    assert runner.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "another_peer: 0 of 6 agree\n" in printed and "not supported yet: k3+: no adapter for this file" in printed
    assert "verl_kl: 6 of 6 agree" in printed
    assert (
        "verl_policy_loss: 1 of 2 agree" in printed
        and "not supported yet: vanilla/token-mean/mixed: no blocks for loss_mode 'novel'" in printed
    )
    assert "verl_agent_gigpo_rollouts: 0 of 2 agree\n" in printed and "no rollout file alfworld.jsonl.gz" in printed


def test_an_exception_is_a_disagreement_of_its_case_alone():
    def answer(case):
        if case.name == "bad":
            raise ValueError("policy_loss: mask must be bool")
        return Answer({"loss": torch.tensor(1.0)})

    cases = [Case(name, {}, {}, {"loss": torch.tensor(1.0)}) for name in ("bad", "good")]
    report = runner.run(cases, Adapter(answer))
    assert report.disagree == ["bad: ValueError: policy_loss: mask must be bool"] and report.cases == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "verl_kl"], "expected FILE=REGEX"),
        (["--only", "verl_q=."], "expected FILE=REGEX with FILE one of"),
        (["--only", "verl_kl=("], "unterminated"),
        (["--only", "verl_kl=^k9$"], "finds no case"),
    ],
)
def test_a_selection_of_nothing_does_not_pass(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        runner.main([str(ORACLES), *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_without_files_does_not_pass(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        runner.main([str(tmp_path)])
    assert stopped.value.code == 2 and "holds no *.json.gz files" in capsys.readouterr().err


def test_the_rule():
    """|a - b| <= 1e-6 max|b| + 1e-5 |b|, elementwise; b = (10, 0) allows 1.1e-4 and 1e-5."""
    theirs = torch.tensor([10.0, 0.0], dtype=torch.float64)
    shares = error(theirs + torch.tensor([2.2e-4, 5e-6], dtype=torch.float64), theirs)
    torch.testing.assert_close(shares, torch.tensor([2.0, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(error(theirs + 2e-5, theirs, torch.tensor([0.0, 1e-5]))[1].item(), 1.0, rtol=1e-6, atol=0)


def test_special_values():
    nan, infinity = math.nan, math.inf
    ours, theirs = torch.tensor([nan, 0.0, nan, infinity, 1.0, -infinity]), torch.tensor([nan, nan, 0.0, infinity, infinity, infinity])
    assert error(ours, theirs).tolist() == [0, infinity, infinity, 0, infinity, infinity]
    assert error(torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]
    assert error(torch.full((1,), 1e-30), torch.zeros(1)).tolist() == [infinity]
    assert error(torch.tensor([3, 10**6]), torch.tensor([3, 10**6 + 1])).tolist() == [0, infinity]


def test_every_output_must_be_answered_in_its_shape():
    oracle = {"loss": torch.tensor(1.0), "grad": torch.zeros(2, 3), "metric": 0.5, "bias": None}
    found = compare(Answer({"loss": torch.tensor(1.0), "grad": torch.zeros(3, 2)}), oracle)
    assert found.faults == ["grad has shape (3, 2), in the oracle (2, 3)", "metric is not answered"]
    assert compare(Answer({"bias": torch.zeros(1)}), {"bias": None}).faults == ["bias is answered, but None in the oracle"]
