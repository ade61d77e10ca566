"""What one training step costs with TRL's head and with ours: time in one interleaved run, peak memory in a process of each.

python -m tests.frameworks.trl_cost          # a head of 151,936 words, batches from recorded rollouts and a dense one
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import time
import warnings
import zlib

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from gigpo_fast.integrations.trl import FusedGRPOTrainer
from tests.frameworks.trl_runs import tokenizer

ROLLOUTS = pathlib.Path(__file__).resolve().parents[2] / "examples" / "rollouts"
VOCABULARY, ROWS, LENGTH, PROMPT = 151_936, 4, 256, 64
TRAINERS = {"TRL": GRPOTrainer, "ours": FusedGRPOTrainer}


def make_trainer(kind: str, out: str = "unused"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))
    args = GRPOConfig(
        out,
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        gradient_checkpointing=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Dataset.from_dict({"prompt": ["w1"] * ROWS})
        trainer = TRAINERS[kind](model=model, reward_funcs=len, args=args, train_dataset=data, processing_class=tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def numbers(text: str) -> list[int]:
    """A number of the vocabulary for each word; a real tokenizer would make somewhat more of them."""
    return [100 + zlib.crc32(word.encode()) % (VOCABULARY - 100) for word in text.split()]


def batch(name: str) -> dict[str, torch.Tensor]:
    """Rows as TRL makes them: from recorded rollouts (observation, action, observation, ...), or dense (every token is an answer's)."""
    ids, mask = torch.randint(100, VOCABULARY, (ROWS, PROMPT + LENGTH)), torch.ones(ROWS, PROMPT + LENGTH, dtype=torch.int64)
    if name != "dense":
        with gzip.open(ROLLOUTS / f"{name}.jsonl.gz", "rt") as lines:
            steps = [step for step in map(json.loads, lines) if step["type"] == "step"]
        for row, first in enumerate([i for i, step in enumerate(steps) if step["step"] == 0][:ROWS]):
            pairs = [(word, 0) for word in numbers(steps[first]["obs"])][:PROMPT]
            pairs = [(100, 0)] * (PROMPT - len(pairs)) + pairs
            for step, after in zip(steps[first:], steps[first + 1 :]):
                pairs += [(word, 1) for word in numbers(step["action"])] + [(word, 0) for word in numbers(after["obs"])]
                if len(pairs) >= PROMPT + LENGTH:
                    break
            ids[row], mask[row] = torch.tensor(pairs[: PROMPT + LENGTH]).T
    completion = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.int64),
        "completion_ids": ids[:, PROMPT:].contiguous(),
        "completion_mask": completion,
        "tool_mask": mask[:, PROMPT:].contiguous(),
        "advantages": torch.linspace(-1, 1, ROWS),
        "num_items_in_batch": mask[:, PROMPT:].sum(),
    }


def step(trainer, inputs: dict) -> float:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach())


def peak(kind: str, name: str) -> float:
    """MiB that a step adds at its peak, in a fresh process."""
    command = [sys.executable, "-m", "tests.frameworks.trl_cost", "--peak-of", kind, "--batch", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def kilobytes(field: str) -> int:
    """A line of this process's memory accounts."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-of", choices=TRAINERS)
    parser.add_argument("--batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.peak_of:
        trainer, inputs = make_trainer(options.peak_of), batch(options.batch)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        before = kilobytes("VmRSS")
        step(trainer, inputs)
        print((kilobytes("VmHWM") - before) / 1024)
        return
    trainers = {kind: make_trainer(kind) for kind in TRAINERS}
    for name in ("textworld", "scienceworld", "dense"):
        inputs, times = batch(name), {kind: [] for kind in TRAINERS}
        losses = {}
        for _ in range(options.rounds):
            for kind, trainer in trainers.items():
                start = time.perf_counter()
                losses[kind] = step(trainer, inputs)
                times[kind].append(time.perf_counter() - start)
        assert abs(losses["ours"] - losses["TRL"]) <= 1e-5 * abs(losses["TRL"]) + 1e-6
        best, peaks = {kind: min(found) for kind, found in times.items()}, {kind: peak(kind, name) for kind in TRAINERS}
        share = float(inputs["tool_mask"].float().mean())
        print(
            f"{name}: {share:.0%} of {ROWS} x {LENGTH} tokens trained; time {best['TRL']:.2f} s / {best['ours']:.2f} s = "
            f"{best['TRL'] / best['ours']:.1f}x; peak {peaks['TRL']:.0f} / {peaks['ours']:.0f} MiB = {peaks['TRL'] / peaks['ours']:.1f}x"
        )


if __name__ == "__main__":
    main()
