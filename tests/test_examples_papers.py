"""The reproductions of papers: they run, repeat, and show what they say; their small worlds agree with numbers worked out by hand."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import gigpo_fast

PAPERS = pathlib.Path(__file__).parent.parent / "examples" / "papers"
NAMES = ("credit_assignment", "entropy_mechanism", "reward_ensembles")


@pytest.fixture(autouse=True, scope="module")
def _importable():
    """The scripts import their neighbour `output`, as they do when run; torch's threads are as before at the end."""
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package, reason=f"the reproductions need {package}: pip install 'gigpo-fast[demo]'")
    threads = torch.get_num_threads()
    sys.path.insert(0, str(PAPERS))
    yield
    sys.path.remove(str(PAPERS))
    torch.set_num_threads(threads)


def load(name):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def quick(_importable, tmp_path_factory):
    """Each script's table from one quick run, and the folder it wrote to."""
    out = tmp_path_factory.mktemp("papers")
    return {name: load(name).main(["--quick", "--out", str(out)]) for name in NAMES}, out


@pytest.mark.parametrize("name", NAMES)
def test_a_run_writes_its_figure_and_every_number(quick, name):
    rows, out = quick[0][name], quick[1]
    assert json.loads((out / f"{name}.json").read_text()) == rows
    assert all(len(values) == 2 and all(map(torch.isfinite, map(torch.tensor, values))) for row in rows.values() for values in row.values())
    picture = (out / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000  # not an empty frame


def test_as_a_command(tmp_path, quick):
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(gigpo_fast.__file__).parent.parent)}  # the package under test
    command = [sys.executable, PAPERS / "credit_assignment.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "credit_assignment.json").read_text()) == quick[0]["credit_assignment"]  # same seeds, same numbers
    assert "training: 100%" in done.stderr and "HGPO, sees the cell" in done.stdout


def test_same_seed_same_numbers():
    entropy, ensembles = load("entropy_mechanism"), load("reward_ensembles")
    for name in entropy.OBJECTIVES:
        first, again, other = (entropy.run(name, seed, 4) for seed in (3, 3, 4))
        assert first == again and first != other
    first, again, other = (ensembles.run(seed, [1, 4], candidates=64, steps=3) for seed in (3, 3, 4))
    assert first == again and first != other


# ---- directions that held for every seed of the full runs, at the margins seen there


def test_the_covariance_blocks_keep_entropy_at_equal_success(quick):
    rows = quick[0]["entropy_mechanism"]
    for name in ("Clip-Cov, 20%", "KL-Cov, 20%"):
        for plain in ("clip (GRPO)", "clip, slower", "drop any 20%"):
            pairs = list(zip(rows[name]["entropy there"], rows[plain]["entropy there"], strict=True))
            assert all(kept > lost + 0.05 for kept, lost in pairs), (name, plain, pairs)
        later = zip(rows[name]["batches to success .5"], rows["clip (GRPO)"]["batches to success .5"], strict=True)
        assert all(slow > fast for slow, fast in later)
    assert all(c > 0.5 for row in rows.values() for c in row["corr(cov, entropy lost)"])


def test_step_credit_is_nearer_to_the_exact_advantage(quick):
    rows = quick[0]["credit_assignment"]
    for column in ("corr, groups of 8", "corr, groups of 64"):
        ordered = (rows[name][column] for name in ("GRPO", "GiGPO, sees the cell", "HGPO, sees the cell"))
        assert all(grpo + 0.02 < gigpo and gigpo + 0.01 < hgpo for grpo, gigpo, hgpo in zip(*ordered, strict=True))
    fine = rows["GiGPO, sees cell and key"]
    for few, many in zip(fine["corr, groups of 8"], fine["corr, groups of 64"], strict=True):
        assert few + 0.02 < many  # groups of few episodes are too small for the finer state


def test_the_mean_of_five_models_finds_better_responses_than_one(quick):
    rows = quick[0]["reward_ensembles"]
    for name in ("mean", "uncertainty (UWO)"):
        assert all(a > b + 0.02 for a, b in zip(rows[name]["gold, n=16"], rows["one model"]["gold, n=16"], strict=True))
    errors = [rows[name]["proxy - gold"] for name in ("one model", "mean", "worst case (WCO)")]
    assert all(one > mean > worst > 0 for one, mean, worst in zip(*errors, strict=True))


# ---- by hand


def test_the_room():
    credit = load("credit_assignment")
    up, down, left, right = range(4)
    always = torch.zeros(credit.END + 1, 4)
    always[:, right] = 1.0  # right to the key in cell 3; from there along the row back, and down
    for cell in range(credit.CELLS):
        always[credit.CELLS + cell] = torch.eye(4)[left if cell % 4 else down]
    assert credit.success(always) == 1.0
    values = (always * credit.action_values(always, 0.5)[0]).sum(-1)
    assert values[credit.START].item() == 0.5**8 and values[credit.CELLS + 8].item() == 1.0  # nine moves; the door below cell 8
    steps = credit.play(always, 2, torch.Generator().manual_seed(0))
    assert steps.state.view(9, 2)[:, 1].tolist() == [0, 1, 2, 19, 18, 17, 16, 20, 24]
    assert steps.reward.tolist() == [0.0] * 16 + [1.0] * 2 and steps.time.tolist() == [t for t in range(9) for _ in range(2)]
    assert credit.FOLLOWING[0, up] == 0 and credit.FOLLOWING[8, down] == 12 and not credit.REWARDS[credit.END].any()


def test_exact_values_are_those_of_many_episodes():
    credit = load("credit_assignment")
    policy = torch.full((credit.END + 1, 4), 0.25)
    steps = credit.play(policy, 20_000, torch.Generator().manual_seed(0))
    assert steps.reward.sum().item() / 20_000 == pytest.approx(credit.success(policy), abs=0.006)  # 3.6 standard errors
    discounted = (steps.reward * credit.GAMMA ** steps.time.float()).sum().item() / 20_000
    assert discounted == pytest.approx(credit.action_values(policy, credit.GAMMA)[0, credit.START].mean().item(), abs=0.002)


def test_best_of_n_and_the_table():
    ensembles, output = load("reward_ensembles"), load("output")
    proxy, gold = torch.tensor([3.0, 1.0, 0.0, 5.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert ensembles.best_of(proxy, gold, 2) == (4.0, 25.0) and ensembles.best_of(proxy, gold, 4) == (5.0, 40.0)
    assert output.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert output.table({"a": {"x": [1.0, 3.0]}}).splitlines()[1] == "a      2.000 ± 1.414"


def test_figures_of_a_run_by_hand():
    entropy = load("entropy_mechanism")
    history = {"entropy": [4.0, 3.0, 1.0, 0.5], "success": [0.1, 0.3, 0.6, 0.9], "covariance": [1.0, 2.0, 0.5, 9.0]}
    assert entropy.figures(history) == pytest.approx(
        {
            "batches to success .5": 2,
            "entropy there": 1.0,
            "entropy at the end": 0.5,
            "success at the end": 0.9,
            "corr(cov, entropy lost)": 1.0,
        }
    )


def test_a_spread_needs_two_seeds(capsys):
    with pytest.raises(SystemExit):
        load("output").parse("about", seeds=5, arguments=["--seeds", "1"])
    assert "--seeds must be at least 2, got 1; a spread needs two" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_each_script_and_figure(name):
    text = (PAPERS / "README.md").read_text(encoding="utf-8")
    assert f"python examples/papers/{name}.py" in text and f"`{name}.png`" in text
