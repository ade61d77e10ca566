"""The verl example, shortened: it runs to its end and learns, and what run.sh asks verl for is a config that verl accepts."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pandas
import pytest
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls

from gigpo_fast.integrations.verl_gigpo import GiGPOAdvantage, register_trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "examples" / "verl_gigpo"


@pytest.fixture
def load(monkeypatch):
    """A file of the example as a module, as PYTHONPATH makes it in run.sh."""
    monkeypatch.syspath_prepend(str(HERE))
    yield lambda name: importlib.import_module(name)
    for name in ("corridor", "make_data"):
        sys.modules.pop(name, None)


def test_it_learns():
    """Ray starts processes of its own, so it runs as a user runs it."""
    command = [sys.executable, str(HERE / "dry_run.py"), "--updates", "14"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=220, env={**os.environ, "OMP_NUM_THREADS": "1"})
    won = [float(share) for share in re.findall(r"^update +\d+: won (\d\.\d\d) in", ran.stdout, re.MULTILINE)]
    assert ran.returncode == 0 and len(won) == 14, ran.stderr[-2000:]
    assert sum(won[-4:]) / 4 > sum(won[:4]) / 4 + 0.2


def overrides() -> list[str]:
    """What run.sh passes to verl."""
    found = re.findall(r"^    (\+?[a-z]\S*=\S+) \\$", (HERE / "run.sh").read_text(), re.MULTILINE)
    return [line.replace('"$PWD/', f'"{HERE}/').replace('"', "") for line in found]


def test_verl_accepts_what_the_script_asks_for():
    register_trainers()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides())
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    assert isinstance(trainer, GiGPOAdvantage) and isinstance(trainer, PPOTrainerSync)
    assert trainer.gigpo.gamma == 0.9 and pathlib.Path(config.actor_rollout_ref.rollout.agent.agent_loop_config_path).is_file()
    assert subprocess.run(["bash", "-n", str(HERE / "run.sh")], check=False).returncode == 0


def test_the_agent_loop_is_where_its_config_says(load):
    from omegaconf import OmegaConf

    (entry,) = OmegaConf.load(HERE / "agent_loop.yaml")
    module, _, name = entry["_target_"].rpartition(".")
    assert getattr(load(module), name).__name__ == "CorridorLoop" and entry["name"] == "corridor"


def test_prompts_say_where_to_start(load, tmp_path):
    """What verl reads is what the agent loop asks for: extra_info["start"]."""
    command = [sys.executable, str(HERE / "make_data.py"), str(tmp_path / "data" / "corridor.parquet"), "--repeat", "2"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).returncode == 0
    rows = pandas.read_parquet(tmp_path / "data" / "corridor.parquet").to_dict("records")
    last = load("corridor").LAST
    assert [row["extra_info"]["start"] for row in rows] == [*range(last)] * 2
    assert all(set(row) == {"prompt", "data_source", "reward_model", "extra_info"} for row in rows)


def test_the_game(load):
    corridor = load("corridor")
    game = corridor.Corridor(corridor.LAST - 2)
    assert game.act(" Right.") == 0.0 and game.state == f"place {corridor.LAST - 1}" and not game.over
    assert game.act("up") == 0.0 and game.act("right") == 1.0 and game.won and game.over and game.turns == 3
    game = corridor.Corridor(0)
    for _ in range(corridor.TURNS):
        assert not game.over and game.act("left") == 0.0
    assert game.over and not game.won and game.place == 0
