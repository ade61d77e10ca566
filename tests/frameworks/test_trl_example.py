"""The TRL example, shortened: it runs to its end, and GiGPO's step level reaches the loss."""

import importlib.util
import pathlib

PATH = pathlib.Path(__file__).resolve().parents[2] / "examples" / "trl_gigpo.py"


def load():
    spec = importlib.util.spec_from_file_location("trl_gigpo", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns():
    won = load().main(["--updates", "40"])
    assert len(won) == 40
    assert sum(won[-5:]) / 5 > sum(won[:5]) / 5 + 0.2


def test_a_rollout_says_what_the_step_level_needs():
    example = load()
    trainer = type("", (), {"processing_class": example.make_tokenizer(), "model": example.make_model(), "temperature": 1.0})()
    rows = example.walk(["at 0 >", "at 4 >", "at 4 >"], trainer)
    for ids, mask, states, rewards in zip(*(rows[name] for name in ("completion_ids", "env_mask", "anchor_states", "step_rewards"))):
        assert len(ids) == len(mask) and sum(mask) == len(states) == len(rewards) <= example.TURNS
        assert mask[:4] == [1, 0, 0, 0], "an answer, then what the corridor says"
    assert [states[0] for states in rows["anchor_states"]] == ["place 0", "place 4", "place 4"]
