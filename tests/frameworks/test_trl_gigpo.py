"""GiGPO's step level, rows left out of the transformer, adapters, and what is refused; with the real TRL."""

import statistics

import pytest
import torch
from transformers import Qwen2ForCausalLM
from trl.experimental.gmpo import GMPOTrainer

from gigpo_fast import rollouts
from gigpo_fast.integrations.trl import FusedGRPOTrainer, GiGPOCredit
from tests.frameworks.trl_runs import GRPOTrainer, assert_same, run, saved_model, scripted_turns

GAMMA, WEIGHT = 0.9, 0.7


class Keeps:
    """Keeps every generated batch and what the rollouts said."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("kept", []).append((inputs, output))
        return output


class Keeping(Keeps, FusedGRPOTrainer):
    pass


class Plain(Keeps, GRPOTrainer):
    pass


def loops(inputs: list[dict], episode: list[float], mask: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Step by step: equal states within a prompt's four rows, returns to go, and the advantage at the tokens of its turn."""
    found = torch.zeros(mask.shape)
    for first in range(0, len(inputs), 4):
        returns, members = {}, {}
        for row in range(first, first + 4):
            ahead = 0.0
            for turn in reversed(range(len(inputs[row]["step_rewards"]))):
                ahead = inputs[row]["step_rewards"][turn] + GAMMA * ahead
                returns[row, turn] = ahead
                members.setdefault(inputs[row]["anchor_states"][turn], []).append(ahead)
        for row in range(first, first + 4):
            turn = -1
            for t in range(mask.shape[1]):
                if not mask[row, t]:
                    continue
                turn += t == 0 or not mask[row, t - 1]
                others = members[inputs[row]["anchor_states"][turn]]
                step = returns[row, turn] - statistics.mean(others)
                if len(others) == 1 or len(set(others)) == 1:
                    step = 0.0
                elif scaled:
                    step /= statistics.stdev(others) + 1e-4
                found[row, t] = episode[row] + WEIGHT * step
    return found


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_step_level_is_that_of_the_loops(scale):
    settings = {"scale_rewards": scale, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    credit = GiGPOCredit(gamma=GAMMA, step_weight=WEIGHT)
    got = run(Keeping, extra={"rollout_func": scripted_turns, "credit": credit}, steps=3, **settings)
    plain = run(Plain, extra={"rollout_func": scripted_turns}, steps=1, **settings).trainer.kept[0][1]
    inputs, output = got.trainer.kept[0]
    mask = (output["completion_mask"] * output["tool_mask"]).bool()
    want = loops(inputs, plain["advantages"].tolist(), mask, scale == "group")
    torch.testing.assert_close(output["advantages"], want, rtol=1e-4, atol=1e-5)
    assert float((want - plain["advantages"][:, None] * mask).abs().max()) > 0.1, "the step level did nothing"
    assert all(0 < entry["gigpo/shared_states"] <= 1 for entry in got.logs)


def test_what_was_used_is_recorded(tmp_path):
    settings = {"scale_rewards": "group", "per_device_train_batch_size": 8}
    credit = GiGPOCredit(gamma=GAMMA, step_weight=WEIGHT, record=tmp_path, every=2)
    got = run(Keeping, extra={"rollout_func": scripted_turns, "credit": credit}, steps=4, **settings)
    found = rollouts.read(tmp_path)
    assert sorted(found.settings) == [0, 2] and found.settings[0]["gamma"] == GAMMA and found.settings[0]["scale"] == "std"
    for iteration in (0, 2):
        inputs, output = got.trainer.kept[iteration]
        mask = (output["completion_mask"] * output["tool_mask"]).bool()
        columns = {name: [v for v, i in zip(column, found.columns["iteration"]) if i == iteration] for name, column in found.columns.items()}
        assert columns["state"] == [state for row in inputs for state in row["anchor_states"]]
        assert columns["reward"] == [reward for row in inputs for reward in row["step_rewards"]]
        assert columns["trajectory"] == [row for row, example in enumerate(inputs) for _ in example["anchor_states"]]
        assert columns["task"] == [row // 4 for row in columns["trajectory"]]
        starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
        torch.testing.assert_close(torch.tensor(columns["advantage"]), output["advantages"][starts], rtol=1e-6, atol=1e-7)


def test_several_generation_batches_for_one_file_are_refused(tmp_path):
    extra = {"rollout_func": scripted_turns, "credit": GiGPOCredit(record=tmp_path)}
    settings = {"per_device_train_batch_size": 4, "steps_per_generation": 1, "gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match="args.steps_per_generation must be that of one optimiser step, got 1, so several .*; leave it out"):
        run(Keeping, extra=extra, steps=1, **settings)
    run(Keeping, extra=extra, steps=1, **{**settings, "steps_per_generation": None})
    assert len(rollouts.read(tmp_path)) > 0


def half_of_them_end(prompts, trainer):
    """Every second row ends with the end-of-text token; the others count as cut off."""
    rows = scripted_turns(prompts, trainer)
    for ids, mask in list(zip(rows["completion_ids"], rows["env_mask"]))[::2]:
        ids.append(2)
        mask.append(0)
    return rows


def test_turns_of_rows_that_are_cut_to_nothing_still_count():
    credit = GiGPOCredit(gamma=GAMMA, step_weight=WEIGHT)
    settings = {"per_device_train_batch_size": 8, "mask_truncated_completions": True}
    got = run(Keeping, extra={"rollout_func": half_of_them_end, "credit": credit}, steps=1, **settings)
    plain = run(Plain, extra={"rollout_func": half_of_them_end}, steps=1, **settings).trainer.kept[0][1]
    inputs, output = got.trainer.kept[0]
    mask = (output["completion_mask"] * output["tool_mask"]).bool()
    assert mask.any(1).tolist() == [True, False] * 4
    torch.testing.assert_close(output["advantages"], loops(inputs, plain["advantages"].tolist(), mask, True), rtol=1e-4, atol=1e-5)


def test_without_the_step_level_it_is_grpo():
    settings = {"loss_type": "grpo", "beta": 0.1}
    want = run(GRPOTrainer, extra={"rollout_func": scripted_turns}, steps=5, **settings)
    credit = GiGPOCredit(step_weight=0.0)
    got = run(FusedGRPOTrainer, extra={"rollout_func": scripted_turns, "credit": credit}, steps=5, **settings)
    for log in want.logs:
        log["gigpo/shared_states"] = None
    assert_same(got, want, apart=("gigpo/shared_states",))


def test_a_key_of_the_state():
    """With the turn left out of the text, more states meet."""
    found = []
    for key in (None, lambda text: text.split(" turn")[0]):
        extra = {"rollout_func": scripted_turns, "credit": GiGPOCredit(key=key)}
        found.append(run(FusedGRPOTrainer, extra=extra, steps=1).logs[0]["gigpo/shared_states"])
    assert found[0] < found[1]


def some_rewards(completion_ids, prompts, **_):
    """The same for all rows of a prompt that starts with an even word."""
    return [1.0 if int(prompt[1]) % 2 == 0 else float(sum(ids) % 5) for prompt, ids in zip(prompts, completion_ids)]


@pytest.mark.parametrize("settings", [{"loss_type": "dapo"}, {"loss_type": "grpo", "scale_rewards": "none"}, {"loss_type": "bnpo"}])
def test_rows_that_cannot_matter_do_not_run(settings):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "rewards": some_rewards, **settings}
    want = run(GRPOTrainer, steps=10, **settings)
    model = Qwen2ForCausalLM.from_pretrained(saved_model())
    rows = []
    count = lambda module, arguments, inputs: rows.append(inputs["input_ids"].shape[0]) if torch.is_grad_enabled() else None  # noqa: E731
    model.model.register_forward_pre_hook(count, with_kwargs=True)
    got = run(FusedGRPOTrainer, model=model, steps=10, extra={"skip_idle_rows": True}, **settings)
    assert_same(got, want, apart=("entropy",))
    assert len(rows) == 20 and min(rows) >= 1, "every micro-batch runs once, with a row at least"
    assert sum(rows) < 60, "rows without advantage did not stay out"


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_lora_in_the_layers(beta):
    from peft import LoraConfig

    adapter = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)}
    settings = {"loss_type": "grpo", "beta": beta, "gradient_accumulation_steps": 2}
    want, got = run(GRPOTrainer, extra=adapter, steps=6, **settings), run(FusedGRPOTrainer, extra=adapter, steps=6, **settings)
    assert got.gradients[0] and all("lora" in name for name in got.gradients[0])
    assert_same(got, want)


def refused(message: str, *, kind=FusedGRPOTrainer, extra=None, error=ValueError, **settings):
    with pytest.raises(error, match=message):
        run(kind, steps=1, extra=extra, **settings)


def test_clashes_name_both_sides():
    refused("use_liger_kernel=True and FusedGRPOTrainer, two fused kernels", use_liger_kernel=True)
    refused(r"args.loss_type must be one of \('grpo', .*, got 'ppo'; use GRPOTrainer", loss_type="ppo")
    refused('importance_sampling_level must be "token" or "sequence", got \'word\'', importance_sampling_level="word")
    refused("got scale_rewards='batch' and credit=GiGPOCredit", extra={"credit": GiGPOCredit()}, scale_rewards="batch")
    refused(
        "got multi_objective_aggregation='normalize_then_sum' and",
        extra={"credit": GiGPOCredit()},
        multi_objective_aggregation="normalize_then_sum",
    )
    refused(
        "skip_idle_rows must be False where head and loss are not fused, got True, but the entropy",
        extra={"skip_idle_rows": True},
        entropy_coef=0.1,
    )

    class Both(FusedGRPOTrainer, GMPOTrainer):
        pass

    refused("got GMPOTrainer and FusedGRPOTrainer; both replace the loss", kind=Both, error=TypeError)


def test_models_that_are_refused():
    from peft import LoraConfig, PromptTuningConfig

    # TRL itself refuses an adapter on the head; a copy of the head is refused by us.
    refused("PEFT adapter to `lm_head`", extra={"peft_config": LoraConfig(target_modules=["lm_head"])})
    copied = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    refused("got ModulesToSaveWrapper, an adapter around one; merge the adapter, or take the head out", extra={"peft_config": copied}, error=TypeError)
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    refused(r"got prompt tuning \(PromptTuningConfig\); use LoRA", extra={"peft_config": prompts})


def without(*names: str):
    def rollout(prompts, trainer):
        return {name: value for name, value in scripted_turns(prompts, trainer).items() if name not in names}

    return rollout


def one_state_too_few(prompts, trainer):
    rows = scripted_turns(prompts, trainer)
    return {
        **rows,
        "anchor_states": [states[1:] for states in rows["anchor_states"]],
        "step_rewards": [r[1:] for r in rows["step_rewards"]],
    }


def test_environments_may_keep_the_lists():
    class Room:
        anchor_states, step_rewards = ["hall", "cellar"], [0.0, 1.0]

    class Left(Room):
        anchor_states = step_rewards = ()

    credit = GiGPOCredit()
    assert credit.turns([{}, {}], [Room(), Left()]) == [(["hall", "cellar"], [0.0, 1.0]), ([], [])]
    with pytest.raises(ValueError, match="equally long, one entry a turn, got 1 states and 2 rewards in row 0"):
        credit.turns([{"anchor_states": ["hall"]}], [Room()])


def test_rollouts_that_do_not_say_enough():
    credit = GiGPOCredit()
    extra = {"credit": credit, "rollout_func": without("step_rewards")}
    refused("GiGPOCredit: step_rewards must be a field of each rollout, got none of that name", extra=extra, error=KeyError)
    extra = {"credit": credit, "rollout_func": one_state_too_few}
    refused(r"anchor_states must be one entry for each of the \d turns in row 0 of the batch, got \d entries", extra=extra)


def test_what_is_not_fused_is_said():
    from trl import GRPOConfig

    def made(**settings):
        args = GRPOConfig(
            "unused", use_cpu=True, bf16=False, report_to="none", num_generations=2, per_device_train_batch_size=2, **settings
        )
        from datasets import Dataset

        from tests.frameworks.trl_runs import reward, tokenizer

        data = Dataset.from_dict({"prompt": ["w1"] * 4})
        model = Qwen2ForCausalLM.from_pretrained(saved_model())
        return FusedGRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer())

    with pytest.warns(UserWarning, match="FusedGRPOTrainer: loss and head are not fused: off-policy, clip_ratio/low_min"):
        assert "row_metrics=False" in made(num_iterations=2).unfused_because
    with pytest.warns(UserWarning, match="not fused: top_entropy_quantile < 1 needs"):
        made(top_entropy_quantile=0.5)
    assert made().unfused_because is None
