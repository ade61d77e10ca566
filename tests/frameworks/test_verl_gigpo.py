"""GiGPO in verl's own v1 trainers: real trainers of a real config, over the real transfer queue, filled by verl's own worker."""

import subprocess
import sys

import pytest
import torch
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from gigpo_fast.integrations.verl_gigpo import GiGPOAdvantage, register_trainers
from tests.frameworks import verl_queue
from tests.frameworks.verl_queue import ESTIMATOR, batch, get, output, put, trainer, turn
from tests.oracles import verl_agent as recorded
from tests.oracles.adapter import Answer
from tests.oracles.compare import compare
from tests.oracles.tensors import read_cases, read_steps
from tests.rollout_steps import FOLDERS, ROOT
from tests.test_integrations_verl_turns import WANT

AS_VERL_AGENT = (ESTIMATOR, "algorithm.gamma=0.9", "+algorithm.gigpo.statistics=verl_agent")
HAND = {"rtol": 1e-5, "atol": 1e-5}  # the numbers computed by hand have 6 digits
register_trainers()


@pytest.fixture(scope="module", autouse=True)
def queue():
    with verl_queue.queue():
        yield


def one_turn_each() -> dict:
    return {"a_0": [turn("s0", 0.0), turn("s1", 1.0, 1.0)], "a_1": [turn("s0", 0.0, 0.0)], "b_0": [turn("s0", 0.0, 5.0)]}


def conversations() -> dict:
    return {
        "a_0": [output([1, 1, 0, 1, 0], 1.0, anchor_states=["s0", "s1"], step_rewards=[0.0, 1.0])],
        "a_1": [output([1, 1], 0.0, anchor_states=["s0"], step_rewards=[0.0])],
        "b_0": [output([1, 0], 5.0, anchor_states=["s0"], step_rewards=[0.0])],
    }


def advantages(kind, meta, metrics: dict | None = None) -> list[list[float]]:
    """What the trainer writes back."""
    meta = kind._compute_advantage(meta, {} if metrics is None else metrics)
    found, returns = get(meta, "advantages", "returns")
    assert found == returns
    return found


def close(found: list[list[float]], want: list[list[float]], **tolerance) -> None:
    assert [len(row) for row in found] == [len(row) for row in want]
    flat = lambda rows: torch.tensor([value for row in rows for value in row])  # noqa: E731
    torch.testing.assert_close(flat(found), flat(want), **tolerance)


@pytest.mark.parametrize("mode", WANT)
def test_by_hand_one_turn_an_output(mode):
    metrics: dict = {}
    order = [2, 0, 3, 1]  # verl balances lengths, so rows come in any order
    found = advantages(trainer(*AS_VERL_AGENT, f"+algorithm.gigpo.mode={mode}"), batch(one_turn_each(), order), metrics)
    close(found, [[WANT[mode][row]] * 2 for row in order], **HAND)
    assert metrics == {"gigpo/shared_states": 0.5}


@pytest.mark.parametrize("mode", WANT)
def test_by_hand_whole_conversations(mode):
    first, second, other, alone = WANT[mode]
    found = advantages(trainer(*AS_VERL_AGENT, f"+algorithm.gigpo.mode={mode}"), batch(conversations()))
    close(found, [[first, first, 0.0, second, 0.0], [other, other], [alone, 0.0]], **HAND)


def test_rows_that_verl_adds_are_outside():
    meta = upsample_batch_to_divisible_size(batch(conversations()), 5, eos_token_id=2)
    assert [bool(tag.get("is_padding")) for tag in meta.tags] == [False] * 3 + [True] * 2
    first, second, other, alone = WANT["mean_norm"]
    metrics: dict = {}
    found = advantages(trainer(*AS_VERL_AGENT), meta, metrics)
    close(found, [[first, first, 0.0, second, 0.0], [other, other], [alone, 0.0], [0.0], [0.0]], **HAND)
    assert metrics == {"gigpo/shared_states": 0.5}, "the copies of the first row's states were counted"


@pytest.mark.parametrize("name", ["alfworld/mean_norm/0.95/1.0", "alfworld/mean_std_norm/1.0/0.5"])
def test_recorded_rollouts_get_what_verl_agent_gave_them(name):
    """713 steps of ALFWorld, one output a step; what is expected is what verl-agent answered when it was recorded."""
    cases = read_cases(ROOT / "tests/data/oracles/verl_agent_gigpo_rollouts.json.gz", list(FOLDERS))
    case = next(case for case in cases if case.name == name)
    steps, config = read_steps(case.inputs["steps"]), case.config
    task, session, sessions, place = {}, {}, {}, []
    for step in steps:
        uid = task.setdefault(step["task_id"], len(task))
        own = session.setdefault(step["traj_uid"], f"{uid}_{len(session)}")
        sessions.setdefault(own, []).append(turn(step["obs"], float(step["reward"])))
    for own, outputs in sessions.items():
        outputs[-1].reward_score = sum(one.extra_fields["step_rewards"][0] for one in outputs)
        place += [row for row, step in enumerate(steps) if session[step["traj_uid"]] == own]
    overrides = (
        "+algorithm.gigpo.statistics=verl_agent",
        f"algorithm.gamma={config['gamma']}",
        f"+algorithm.gigpo.mode={config['mode']}",
        f"+algorithm.gigpo.step_advantage_w={config['step_advantage_w']}",
    )
    found = advantages(trainer(ESTIMATOR, *overrides), batch(sessions))
    assert sorted(place) == list(range(713)) and all(row[0] == row[1] for row in found)
    answer = Answer(
        {"advantages": torch.tensor([row[0] for row in found])},
        {"advantages": recorded.answer_rollouts(case).slack["advantages"][place]},
    )
    result = compare(answer, {"advantages": case.outputs["advantages"][place]}, recorded.LOOSER)
    assert not result.faults and not result.looser and 0 < result.worst <= 1, result


def test_rejected_tokens_do_not_split_turns():
    """Rollout correction empties places of the mask before advantages are computed: two turns that were one output stay two."""
    rejecting = (
        "algorithm.rollout_correction.rollout_is=null",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0",
    )
    sessions = {
        "a_0": [output([1, 1, 1, 0, 1], 1.0, anchor_states=["s0", "s1"], step_rewards=[0.0, 1.0])],
        "a_1": [output([1, 1], 0.0, anchor_states=["s0"], step_rewards=[0.0])],
    }
    plain = advantages(trainer(*AS_VERL_AGENT), batch(sessions))
    meta = batch(sessions)
    put(meta, old_log_probs=[[-1.0] * 5, [-1.0] * 2], rollout_log_probs=[[-1.0, -9.0, -1.0, -1.0, -1.0], [-1.0] * 2])
    metrics: dict = {}
    found = advantages(trainer(*AS_VERL_AGENT, *rejecting), meta, metrics)
    (mask,) = get(meta, "response_mask")
    assert mask[0] == [1, 0, 1, 0, 1], "nothing was rejected"
    close(found, [[value * kept for value, kept in zip(row, keeps)] for row, keeps in zip(plain, mask)])
    assert any(name.startswith("rollout_corr/") for name in metrics)


def test_the_penalty_in_the_reward_is_verls():
    """Scores are 1 and 0 before it; the penalty is 0.5 a token of difference 1, and only the first row has any."""
    meta = batch({"a_0": [turn("s0", 0.0, 1.0)], "a_1": [turn("s1", 0.0, 0.0)]})
    put(meta, old_log_probs=[[-1.0, -1.0], [-1.0, -1.0]], ref_log_prob=[[-2.0, -2.0], [-1.0, -1.0]])
    settings = ("algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0.5")
    metrics: dict = {}
    found = advantages(trainer(ESTIMATOR, *settings), meta, metrics)
    (rewards,) = get(meta, "token_level_rewards")
    assert rewards == [[-0.5, 0.5], [0.0, 0.0]]
    assert found == [[0.0, 0.0], [0.0, 0.0]] and metrics["gigpo/shared_states"] == 0.0
    assert "actor/reward_kl_penalty" in metrics


@pytest.mark.parametrize(
    "mode, kind, buffer", [("sync", PPOTrainerSync, ReplayBuffer), ("colocate_async", PPOTrainerColocateAsync, ReplayBufferAsync)]
)
def test_trainers_are_found_and_behave_as_verls(mode, kind, buffer):
    """verl chooses by trainer_mode == "sync" which replay buffer it makes: a name it does not know would be taken for async."""
    made = trainer(ESTIMATOR, mode=f"gigpo_fast_{mode}")
    assert isinstance(made, kind) and isinstance(made, GiGPOAdvantage)
    assert made.trainer_mode == made.config.trainer.v1.trainer_mode == mode
    assert type(made.replay_buffer) is buffer
    assert get_trainer_cls(mode) is kind, "verl's own stays"


def test_the_separate_trainer_is_found():
    settings = (
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
        "data.train_batch_size=1024",
        "actor_rollout_ref.actor.ppo_mini_batch_size=256",
    )
    made = trainer(ESTIMATOR, *settings, mode="gigpo_fast_separate_async")
    assert isinstance(made, PPOTrainerSeparateAsync) and isinstance(made, GiGPOAdvantage)
    assert made.trainer_mode == "separate_async" and made.parameter_sync_step == 4


def test_registering_again_changes_nothing():
    before = get_trainer_cls("gigpo_fast_sync")
    register_trainers()
    assert get_trainer_cls("gigpo_fast_sync") is before


def test_a_class_of_ones_own():
    class Mine(GiGPOAdvantage, PPOTrainerColocateAsync):
        pass

    made = Mine(verl_queue.config(*AS_VERL_AGENT, "trainer.v1.trainer_mode=mine"))
    assert made.trainer_mode == "colocate_async" and made.gigpo.gamma == 0.9


def test_trainers_are_not_imported_before_they_are_needed():
    code = (
        "import sys, verl; from gigpo_fast.integrations.verl_gigpo import register_trainers; register_trainers(); register_trainers();"
        "assert 'verl.trainer.ppo.v1' not in sys.modules;"
        "from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY;"
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn;"
        "print(sorted(name for name in TRAINER_REGISTRY if name.startswith('gigpo_fast')), get_adv_estimator_fn('gigpo_fast_gigpo').__name__)"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "['gigpo_fast_colocate_async', 'gigpo_fast_separate_async', 'gigpo_fast_sync'] gigpo_estimator" in ran.stdout, ran.stderr


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["algorithm.adv_estimator=grpo"],
            "algorithm.adv_estimator must be 'gigpo_fast_gigpo', got 'grpo'; or choose trainer.v1.trainer_mode",
        ),
        ([ESTIMATOR, "critic.enable=True"], "critic.enable must be null or false, got True; GiGPO has no values"),
        ([ESTIMATOR, "+algorithm.gigpo.omega=1"], "algorithm.gigpo must be made of .*, got also omega"),
        ([ESTIMATOR, "+algorithm.gigpo.mode=std"], "algorithm.gigpo.mode must be 'mean_norm' or 'mean_std_norm', got 'std'"),
    ],
)
def test_settings_that_are_refused_before_anything_starts(overrides, message):
    with pytest.raises(ValueError, match=message):
        trainer(*overrides)


def test_the_estimator_needs_the_trainer():
    with pytest.raises(ValueError, match="verl hands no states to an estimator: choose trainer.v1.trainer_mode=gigpo_fast_sync"):
        trainer(ESTIMATOR, mode="sync")._compute_advantage(batch(one_turn_each()), {})


def test_outputs_without_states_are_refused_with_what_to_return():
    meta = batch({"a_0": [output([1, 1], 1.0)], "a_1": [turn("s0", 0.0, 0.0)]})
    want = r"must be in every output, got none of that name in p\d+a_0_0; return AgentLoopOutput\(\.\.\., extra_fields="
    with pytest.raises(KeyError, match=want):
        trainer(ESTIMATOR)._compute_advantage(meta, {})


def test_part_of_a_trajectory_is_refused():
    meta = batch(one_turn_each(), [1, 2, 3])
    with pytest.raises(ValueError, match=r"each output once, got output 1 of p\d+a_0 where 0 belongs"):
        trainer(ESTIMATOR)._compute_advantage(meta, {})


def test_a_loop_that_sets_its_own_reward_must_say_so_in_verls_way():
    """A trap of verl that docs/verl.md names: of several outputs, the last must hold reward_extra_info."""
    first, last = turn("s0", 0.0), turn("s1", 1.0, 1.0)
    del last.extra_fields["reward_extra_info"]
    with pytest.raises(KeyError, match="reward_extra_info"):
        batch({"a_0": [first, last]})
