"""Tiny GRPO runs on a CPU: a two-layer Qwen2 over a word-level tokenizer, stock trainer or ours, everything that happened recorded."""

import functools
import itertools
import os
import pathlib
import tempfile
import warnings
from typing import NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

WORDS = 24


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(WORDS - 4))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


@functools.cache
def saved_model() -> str:
    """A folder with the model, since TRL reads the reference model from disk; TINY_MODEL names one that another process has made."""
    if "TINY_MODEL" in os.environ:
        return os.environ["TINY_MODEL"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=WORDS, tie_word_embeddings=False, initializer_range=0.3, **sizes)
    folder = pathlib.Path(tempfile.mkdtemp()) / "model"
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def reward(completion_ids, **_):
    """Something that differs within a group: the share of even words, less a little for length."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) - 0.02 * len(ids) for ids in completion_ids]


class Run(NamedTuple):
    losses: list[float]  # of every micro-batch
    gradients: list[dict[str, torch.Tensor]]  # of every optimiser step
    logs: list[dict[str, float]]
    trainer: GRPOTrainer


class Recorder(TrainerCallback):
    def __init__(self) -> None:
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def run(trainer_class, *, steps: int = 20, model=None, extra: dict | None = None, rewards=reward, **settings) -> Run:
    """Train for `steps` optimiser steps; the same seeds for every trainer."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_generations": 4,
            "max_completion_length": 10,
            "learning_rate": 0.03,
            "optim": "sgd",
            "max_grad_norm": 1e9,
            "lr_scheduler_type": "constant",
            "bf16": False,
            **settings,
        }
        args = GRPOConfig(
            folder,
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            log_level="error",
            **options,
        )
        data = Dataset.from_dict({"prompt": [f"w{i % 7} w{i % 5} w{i % 3}" for i in range(16)]})
        recorder, losses = Recorder(), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = trainer_class(
                model=Qwen2ForCausalLM.from_pretrained(saved_model()) if model is None else model,
                reward_funcs=rewards,
                args=args,
                train_dataset=data,
                processing_class=tokenizer(),
                callbacks=[recorder],
                **(extra or {}),
            )
            compute = trainer._compute_loss
            trainer._compute_loss = lambda model, inputs: losses.append(loss := compute(model, inputs)) or loss
            trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        return Run([float(loss.detach()) for loss in losses], recorder.gradients, logs, trainer)


TIMES = ("step_time", "runtime", "per_second", "epoch")


def assert_same(got: Run, want: Run, *, without: tuple[str, ...] = (), apart: tuple[str, ...] = ()) -> None:
    """Equal losses, gradients and logged metrics, by name. `without` names metrics that `got` lacks, `apart` those that may differ."""
    assert len(got.losses) == len(want.losses) and len(got.gradients) == len(want.gradients) and len(got.logs) == len(want.logs)
    _close("losses", torch.tensor(got.losses), torch.tensor(want.losses), rtol=1e-4, atol=2e-6)
    for step, (mine, theirs) in enumerate(zip(got.gradients, want.gradients)):
        assert mine.keys() == theirs.keys()
        for name in theirs:
            _close(f"step {step} {name}", mine[name], theirs[name], rtol=1e-4, atol=1e-4 * float(theirs[name].abs().max()) + 1e-7)
    for step, (mine, theirs) in enumerate(zip(got.logs, want.logs)):
        mine, theirs = ({name: value for name, value in log.items() if not any(part in name for part in TIMES)} for log in (mine, theirs))
        assert mine.keys() == theirs.keys() - set(without), f"step {step}"
        for name in mine.keys() - set(apart):
            values = (torch.tensor(float("nan") if log[name] is None else float(log[name])) for log in (mine, theirs))
            _close(f"step {step} {name}", *values, rtol=1e-3, atol=1e-5)


def _close(what: str, got: torch.Tensor, want: torch.Tensor, *, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}")


def scripted_turns(prompts, trainer):
    """A rollout_func without a model: two or three turns a row, with words of the environment between them; the same for every trainer."""
    counter = trainer.__dict__.setdefault("_scripted", itertools.count())
    generator = torch.Generator().manual_seed(1000 * trainer.accelerator.process_index + next(counter))
    draw = lambda low, high, size=(): torch.randint(low, high, size, generator=generator)  # noqa: E731
    rows = {name: [] for name in ("prompt_ids", "completion_ids", "env_mask", "anchor_states", "step_rewards")}
    for prompt in prompts:
        ids, mask, states, rewards = [], [], [], []
        for turn in range(int(draw(2, 4))):
            answer, reply = int(draw(1, 4)), int(draw(1, 3))
            ids += draw(4, WORDS, (answer + reply,)).tolist()
            mask += [1] * answer + [0] * reply
            states.append(f"room {int(draw(0, 2))} turn {turn}")
            rewards.append(float(draw(0, 2)))
        for name, value in zip(rows, (tokenizer()(prompt)["input_ids"], ids, mask, states, rewards)):
            rows[name].append(value)
    return {**rows, "logprobs": None}
