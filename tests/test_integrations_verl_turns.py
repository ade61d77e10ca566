"""GiGPO from what an agent loop of verl says about its turns: one turn an output, whole conversations, and what is refused. verl is not needed."""

import statistics

import pytest
import torch

from gigpo_fast import rollouts
from gigpo_fast.integrations.verl_turns import GiGPOConfig, gigpo_token_advantages

VERL_AGENT = {"statistics": "verl_agent", "gamma": 0.9}


def said(states: list, rewards: list) -> dict:
    return {"anchor_states": states, "step_rewards": rewards, "turn_scores": []}


def one_turn_each() -> dict:
    """Task a: t1 is in s0, then in s1, and wins; t2 is in s0 and does not. Task b: one trajectory of one step, score 5."""
    return {
        "token_rewards": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [5.0, 0.0]]),
        "mask": torch.tensor([[True, True], [True, True], [True, True], [True, False]]),
        "keys": ["a_0_0", "a_0_1", "a_1_0", "b_0_0"],
        "extra_fields": [said(["s0"], [0.0]), said(["s1"], [1.0]), said(["s0"], [0.0]), said(["s0"], [0.0])],
    }


def conversations() -> dict:
    """The same as whole conversations: between t1's two turns stands what the environment wrote, and its last token carries the score."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 5, [0.0, 5.0, 0.0, 0.0, 0.0]])
    fields = [said(["s0", "s1"], [0.0, 1.0]), said(["s0"], [0.0]), said(["s0"], [0.0])]
    return {"token_rewards": rewards, "mask": mask, "keys": ["a_0_0", "a_1_0", "b_0_0"], "extra_fields": fields}


WANT = {  # by hand: scores 1, 1, 0 and the returns 0.9 and 0 of state s0, centred, and over deviations of 0.57735 and 0.63640
    "mean_norm": [0.78333333, 0.33333333, -1.11666667, 5.0],
    "mean_std_norm": [1.28445, 0.57735, -1.86180, 5.0],
}


@pytest.mark.parametrize("mode", WANT)
def test_by_hand_in_both_layouts(mode):
    first, second, other, alone = WANT[mode]
    config = GiGPOConfig(mode=mode, **VERL_AGENT)
    close = {"rtol": 1e-5, "atol": 1e-5}  # the numbers by hand have 6 digits
    found, metrics = gigpo_token_advantages(**one_turn_each(), config=config)
    want = torch.tensor([[first, first], [second, second], [other, other], [alone, 0.0]])
    torch.testing.assert_close(found, want, **close)
    assert metrics == {"gigpo/shared_states": 0.5}
    found, metrics = gigpo_token_advantages(**conversations(), config=config)
    want = torch.tensor([[first, first, 0.0, second, 0.0], [other, other, 0.0, 0.0, 0.0], [alone, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, want, **close)
    assert metrics == {"gigpo/shared_states": 0.5}


def test_each_trajectory_counts_once_unless_asked_otherwise():
    """Scores 1 and 0 of two trajectories; the lone one of task b gets 0."""
    found, _ = gigpo_token_advantages(**one_turn_each(), config=GiGPOConfig(gamma=0.9, step_advantage_w=0.0))
    assert found[:, 0].tolist() == [0.5, 0.5, -0.5, 0.0]
    found, _ = gigpo_token_advantages(**one_turn_each(), config=GiGPOConfig(gamma=0.9, step_advantage_w=2.0))
    torch.testing.assert_close(found[:, 0], torch.tensor([1.4, 0.5, -1.4, 0.0]))


def a_batch(seed: int) -> dict:
    """Two tasks, several trajectories of several outputs of up to three turns, some without a trained token, in any order."""
    draw = torch.Generator().manual_seed(seed)
    number = lambda high: int(torch.randint(high, (), generator=draw))  # noqa: E731
    keys, fields, masks, rewards = [], [], [], []
    for task in ("x_1", "y"):
        for session in range(3 + number(2)):
            score = float(number(3))
            for index in range(1 + number(3)):
                turns = 1 + number(3)
                row = [False] * number(2)
                for _ in range(turns):
                    row += [True] * (1 + number(2)) + [False] * (1 + number(2))
                row = (row + [False] * 16)[:16]
                if number(6) == 0:
                    row = [False] * 16
                keys.append(f"{task}_{session}_{index}")
                fields.append(said([f"place {number(3)}" for _ in range(turns)], [float(number(4)) / 4 for _ in range(turns)]))
                masks.append(row)
                rewards.append([0.0] * 15 + [score])
    order = torch.randperm(len(keys), generator=draw).tolist()
    return {
        "token_rewards": torch.tensor(rewards)[order],
        "mask": torch.tensor(masks)[order],
        "keys": [keys[row] for row in order],
        "extra_fields": [fields[row] for row in order],
    }


def loops(batch: dict, gamma: float, weight: float) -> torch.Tensor:
    """Turn by turn, with nothing shared with the product: means over trajectories, and over visits of a state within a task."""
    where = {key: row for row, key in enumerate(batch["keys"])}
    sessions: dict[str, list[str]] = {}
    for key in sorted(where, key=lambda key: int(key.split("_")[-1])):
        sessions.setdefault(key.rpartition("_")[0], []).append(key)
    scores, returns, visits = {}, {}, {}
    for session, outputs in sessions.items():
        task = session.rpartition("_")[0]
        scores.setdefault(task, {})[session] = float(batch["token_rewards"][where[outputs[0]]].sum())
        steps = [(key, turn) for key in outputs for turn in range(len(batch["extra_fields"][where[key]]["step_rewards"]))]
        ahead = 0.0
        for key, turn in reversed(steps):
            ahead = batch["extra_fields"][where[key]]["step_rewards"][turn] + gamma * ahead
            returns[key, turn] = ahead
            state = batch["extra_fields"][where[key]]["anchor_states"][turn]
            visits.setdefault((task, state), []).append(ahead)
    found = torch.zeros(batch["mask"].shape)
    for key, row in where.items():
        session = key.rpartition("_")[0]
        task = session.rpartition("_")[0]
        episode = scores[task][session] - statistics.mean(scores[task].values())
        turn = -1
        for t, trained in enumerate(batch["mask"][row].tolist()):
            if not trained:
                continue
            turn += t == 0 or not batch["mask"][row, t - 1]
            state = batch["extra_fields"][row]["anchor_states"][turn]
            found[row, t] = episode + weight * (returns[key, turn] - statistics.mean(visits[task, state]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_loops_say_the_same(seed):
    batch = a_batch(seed)
    found, _ = gigpo_token_advantages(**batch, config=GiGPOConfig(gamma=0.9, step_advantage_w=0.7))
    torch.testing.assert_close(found, loops(batch, 0.9, 0.7), rtol=1e-5, atol=1e-6)
    assert float(found.abs().max()) > 0.1


def shuffled(batch: dict, order: list[int]) -> dict:
    pick = lambda values: values[order] if isinstance(values, torch.Tensor) else [values[row] for row in order]  # noqa: E731
    return {name: pick(values) for name, values in batch.items()}


@pytest.mark.parametrize("similar", [{}, {"enable_similarity": True, "similarity_thresh": 0.8}])
def test_the_order_of_the_rows_changes_no_bit(similar):
    """Similarity joins a state to the first that is like enough, so it must not see verl's order, which balances lengths."""
    batch = a_batch(3)
    texts = iter(("red hall one", "red hall two", "red hill one", "red halls") * 40)
    for fields in batch["extra_fields"]:
        fields["anchor_states"] = [next(texts) for _ in fields["anchor_states"]]
    config = GiGPOConfig(gamma=0.9, mode="mean_std_norm", **similar)
    want, _ = gigpo_token_advantages(**batch, config=config)
    for seed in range(5):
        order = torch.randperm(len(batch["keys"]), generator=torch.Generator().manual_seed(seed)).tolist()
        found, _ = gigpo_token_advantages(**shuffled(batch, order), config=config)
        assert torch.equal(found, want[order])


def test_padding_is_outside():
    """verl fills batches up with rows that copy the first row's extra_fields; here they would claim turns that they do not have."""
    batch = conversations()
    config = GiGPOConfig(gamma=0.9)
    want, _ = gigpo_token_advantages(**batch, config=config)
    padded = {
        "token_rewards": torch.cat([batch["token_rewards"], torch.full((2, 5), float("nan"))]),
        "mask": torch.cat([batch["mask"], torch.tensor([[True, False, True, False, True], [False] * 5])]),
        "keys": [*batch["keys"], "pad7_0_0", "pad7_1_0"],
        "extra_fields": [*batch["extra_fields"], batch["extra_fields"][0], {}],
    }
    found, metrics = gigpo_token_advantages(**padded, config=config, padding=[False] * 3 + [True] * 2)
    assert torch.equal(found[:3], want) and not found[3:].any() and metrics == {"gigpo/shared_states": 0.5}
    nothing, metrics = gigpo_token_advantages(**batch, config=config, padding=[True] * 3)
    assert not nothing.any() and nothing.shape == (3, 5) and metrics == {"gigpo/shared_states": 0.0}


def test_rows_without_a_trained_token_still_count():
    batch = conversations()
    want, _ = gigpo_token_advantages(**batch, config=GiGPOConfig(gamma=0.9))
    batch["mask"][1] = False
    found, _ = gigpo_token_advantages(**batch, config=GiGPOConfig(gamma=0.9))
    assert torch.equal(found[0], want[0]) and not found[1].any()


def no_turn_counter(state: str) -> str:
    return state.partition(" turn")[0]


def test_a_key_of_the_state():
    batch = one_turn_each()
    for turn, fields in enumerate(batch["extra_fields"]):
        fields["anchor_states"] = [f"{fields['anchor_states'][0]} turn {turn}"]
    alone, metrics = gigpo_token_advantages(**batch, config=GiGPOConfig(**VERL_AGENT))
    assert metrics["gigpo/shared_states"] == 0.0
    keyed = GiGPOConfig(**VERL_AGENT, state_key=f"{__name__}:no_turn_counter")
    found, _ = gigpo_token_advantages(**batch, config=keyed)
    want, _ = gigpo_token_advantages(**one_turn_each(), config=GiGPOConfig(**VERL_AGENT))
    assert torch.equal(found, want) and not torch.equal(found, alone)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"anchor_states": None},
            KeyError,
            "extra_fields.'anchor_states'. must be in every output, got none of that name in a_0_1; return",
        ),
        ({"step_rewards": None}, KeyError, "extra_fields.'step_rewards'. must be in every output, got none of that name in a_0_1; return"),
        ({"anchor_states": "s1"}, TypeError, "must be a list with one entry a turn, got a str in a_0_1"),
        ({"anchor_states": ["s1", "s0"]}, ValueError, "must be one entry for each of the 1 turns of a_0_1, got 2 entries; a turn is a run"),
        ({"step_rewards": []}, ValueError, "step_rewards.* must be one entry for each of the 1 turns of a_0_1, got 0 entries"),
        ({"step_rewards": ["won"]}, TypeError, r"must be numbers, got \['won'\] in a_0_1"),
        ({"step_rewards": [float("nan")]}, ValueError, "rewards must be finite in valid rows, got not finite in rows 1"),
    ],
)
def test_outputs_that_do_not_say_enough(change, error, message):
    batch = one_turn_each()
    batch["extra_fields"][1] = {name: value for name, value in {**batch["extra_fields"][1], **change}.items() if value is not None}
    with pytest.raises(error, match=message):
        gigpo_token_advantages(**batch, config=GiGPOConfig())


def test_a_row_cut_to_nothing_must_still_agree_with_itself():
    batch = one_turn_each()
    batch["mask"][1] = False
    batch["extra_fields"][1] = said(["s1", "s0"], [1.0])
    with pytest.raises(ValueError, match="must be one entry for each of the 2 turns of a_0_1, got 1 entries"):
        gigpo_token_advantages(**batch, config=GiGPOConfig())


@pytest.mark.parametrize(
    "keys, message",
    [
        (["a_0_0", "a_0_2", "a_1_0", "b_0_0"], "each output once, got output 2 of a_0 where 1 belongs"),
        (["a_0_0", "a_0_0", "a_1_0", "b_0_0"], "each output once, got output 0 of a_0 where 1 belongs"),
        (["a_0_0", "a_0_1", "a_1_1", "b_0_0"], "each output once, got output 1 of a_1 where 0 belongs"),
        (["a_0_0", "a_0_1", "a_1_0", "b"], "keys must be 'uid_session_index', as verl's agent loop workers write them, got 'b'"),
        (["a_0_0", "a_0_1", "a_1_0", "b_0_x"], "keys must be 'uid_session_index'"),
    ],
)
def test_keys_that_are_not_whole_trajectories(keys, message):
    with pytest.raises(ValueError, match=message):
        gigpo_token_advantages(**{**one_turn_each(), "keys": keys}, config=GiGPOConfig())


class Algorithm(dict):
    """Enough of verl's config.algorithm: attributes and get."""

    __getattr__ = dict.__getitem__


def test_settings_are_read():
    assert GiGPOConfig.of(Algorithm(gamma=1.0)) == GiGPOConfig()
    given = {"step_advantage_w": 0.5, "mode": "mean_std_norm", "enable_similarity": True, "similarity_thresh": 0.9, "statistics": "roll"}
    assert GiGPOConfig.of(Algorithm(gamma=0.95, gigpo=given)) == GiGPOConfig(gamma=0.95, **given)
    verl_agents = {"step_advantage_w": 1.0, "mode": "mean_norm", "enable_similarity": False, "similarity_thresh": 0.95}
    assert GiGPOConfig.of(Algorithm(gamma=0.95, gigpo=verl_agents)) == GiGPOConfig(gamma=0.95)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"step_weight": 1.0}, "algorithm.gigpo must be made of step_advantage_w, mode, .*, got also step_weight; correct the name"),
        ({"gamma": 0.9}, "got also gamma; the discount is algorithm.gamma"),
        ({"mode": "leave_one_out"}, "algorithm.gigpo.mode must be 'mean_norm' or 'mean_std_norm', got 'leave_one_out'"),
        ({"statistics": "mine"}, "algorithm.gigpo.statistics must be 'corrected' or 'verl_agent' or 'roll', got 'mine'"),
        ({"enable_similarity": "yes"}, "algorithm.gigpo.enable_similarity must be False or True, got 'yes'"),
        ({"step_advantage_w": -1.0}, "algorithm.gigpo.step_advantage_w must be a finite number >= 0.0, got -1.0"),
        ({"enable_similarity": True, "similarity_thresh": 1.0}, "similarity_thresh must be below 1, got 1.0; for equal texts"),
        ({"similarity_thresh": 0.8}, "similarity_thresh must be left out, got 0.8; it is read with enable_similarity=True only"),
        ({"enable_similarity": True, "state_key": "m:f"}, "state_key must be null with enable_similarity, got 'm:f'"),
        ({"state_key": "no.such:thing"}, "state_key must be 'module:function', .* got 'no.such:thing'; ModuleNotFoundError"),
        ({"state_key": "statistics:no_such"}, "got 'statistics:no_such'; AttributeError"),
        ({"state_key": ""}, "state_key must be 'module:function'"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GiGPOConfig.of(Algorithm(gamma=0.9, gigpo=settings))


def test_a_discount_is_checked_before_anything_starts():
    with pytest.raises(ValueError, match=r"GiGPO in verl: gamma must be in \[0, 1\], got 1.5"):
        GiGPOConfig.of(Algorithm(gamma=1.5))


def test_a_clash_about_the_deviation_names_both_sides():
    with pytest.raises(ValueError, match="got norm_adv_by_std_in_grpo=False and gigpo.mode='mean_std_norm'"):
        GiGPOConfig.of(Algorithm(gamma=0.9, norm_adv_by_std_in_grpo=False, gigpo={"mode": "mean_std_norm"}))
    assert GiGPOConfig.of(Algorithm(gamma=0.9, norm_adv_by_std_in_grpo=False)).mode == "mean_norm"


@pytest.mark.parametrize("batch", [one_turn_each, conversations])
def test_what_was_used_is_recorded(tmp_path, batch):
    config = GiGPOConfig(gamma=0.9, step_advantage_w=0.5, record=str(tmp_path), record_every=2)
    plain, _ = gigpo_token_advantages(**batch(), config=GiGPOConfig(gamma=0.9, step_advantage_w=0.5))
    for iteration in range(1, 5):
        found, _ = gigpo_token_advantages(**batch(), config=config, iteration=iteration)
        torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002.jsonl.gz", "000004.jsonl.gz"]
    read = rollouts.read(tmp_path / "000002.jsonl.gz")
    columns = read.columns
    assert columns["task"] == ["a", "a", "a", "b"] and columns["trajectory"] == ["a_0", "a_0", "a_1", "b_0"]
    assert columns["step"] == [0, 1, 0, 0] and columns["state"] == ["s0", "s1", "s0", "s0"] and columns["state_id"] == [0, 1, 0, 2]
    assert columns["reward"] == [0.0, 1.0, 0.0, 0.0] and columns["iteration"] == [2] * 4
    used = [value for value in plain.flatten().tolist() if value] if batch is conversations else plain[:, 0].tolist()
    assert sorted(set(columns["advantage"])) == sorted({*used, columns["advantage"][3]})
    assert columns["advantage"] == pytest.approx([e + 0.5 * s for e, s in zip(columns["episode_advantage"], columns["step_advantage"])])
    assert read.settings[2]["gamma"] == 0.9 and read.settings[2]["step_weight"] == 0.5 and read.settings[2]["statistics"] == "corrected"


def test_recording_needs_the_number_of_the_training_step(tmp_path):
    with pytest.raises(ValueError, match="iteration must be the training step, with algorithm.gigpo.record, got None; pass it"):
        gigpo_token_advantages(**one_turn_each(), config=GiGPOConfig(record=str(tmp_path)))
    with pytest.raises(ValueError, match="record_every must be left out, got 3; it is read with record=FOLDER only"):
        GiGPOConfig(record_every=3)
