"""What one actor micro-batch costs in verl with its own heads and with ours: time in one interleaved run, peak memory in a process of each.

python -m tests.frameworks.verl_cost          # a head of 151,936 words, batches from recorded rollouts and a dense one
"""

import argparse
import contextlib
import gzip
import json
import pathlib
import subprocess
import sys
import time
import zlib

import torch
from tensordict import NonTensorData, TensorDict
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils import torch_functional as verl_functional
from verl.workers.utils import losses

from gigpo_fast.integrations.verl import ppo_loss, use_fused_head
from tests.frameworks.verl_cases import actor_config

ROLLOUTS = pathlib.Path(__file__).resolve().parents[2] / "examples" / "rollouts"
VOCABULARY, ROWS, LENGTH, PROMPT = 151_936, 4, 256, 64
KINDS = ("verl, logits", "verl, fused", "ours")


class Actor:
    """A model in the state that verl's engine puts it into, and the loss that goes with it."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        self.kind, self.model = kind, Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))
        self.model.__class__ = type("Actor", (Qwen2ForCausalLM,), {})  # verl patches classes
        self.loss = ppo_loss if kind == "ours" else losses.ppo_loss
        self.config = actor_config("vanilla", entropy_coeff=0.0)
        with self.head(), contextlib.redirect_stdout(None):
            patch_forward_with_backends(self.model, use_fused_kernels=kind != "verl, logits", fused_kernels_backend="torch")

    def head(self) -> contextlib.AbstractContextManager:
        return use_fused_head() if self.kind == "ours" else contextlib.nullcontext()

    def log_probs(self, inputs: dict) -> torch.Tensor:
        """(rows, tokens), entry t of token t + 1, as verl's FSDP engine takes it; without an entropy, which entropy_coeff 0 does not need."""
        if self.kind != "verl, logits":
            return self.model(**inputs, temperature=1.0, return_dict=True, use_cache=False).log_probs
        logits = self.model(**inputs, use_cache=False).logits
        return verl_functional.logprobs_from_logits(logits, inputs["input_ids"].roll(-1, dims=-1))

    def step(self, inputs: dict, data: TensorDict) -> float:
        self.model.zero_grad()
        with self.head():
            log_probs = self.log_probs(inputs)
            offsets = torch.arange(ROWS + 1) * log_probs.shape[1]
            loss, _ = self.loss(
                self.config, {"log_probs": torch.nested.nested_tensor_from_jagged(log_probs.flatten(), offsets=offsets)}, data
            )
            loss.backward()
        return float(loss.detach())


def numbers(text: str) -> list[int]:
    """A number of the vocabulary for each word; a real tokenizer would make somewhat more of them."""
    return [100 + zlib.crc32(word.encode()) % (VOCABULARY - 100) for word in text.split()]


def batch(name: str) -> tuple[dict, TensorDict]:
    """Rows of one trajectory each from recorded rollouts (observation, action, observation, ...), or dense: every response token trained."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, VOCABULARY, (ROWS, PROMPT + LENGTH), generator=generator)
    mask = torch.ones(ROWS, PROMPT + LENGTH, dtype=torch.int64)
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
    mask = mask[:, PROMPT:].bool()
    jagged = lambda rows: torch.nested.nested_tensor(list(rows), layout=torch.jagged)  # noqa: E731
    fields = {
        "prompts": jagged(ids[:, :PROMPT]),
        "responses": jagged(ids[:, PROMPT:]),
        "response_mask": jagged(mask),
        "advantages": jagged(torch.linspace(-1, 1, ROWS)[:, None].expand(mask.shape)),
        "old_log_probs": jagged(torch.full(mask.shape, -11.9) + 0.1 * torch.randn(mask.shape, generator=generator)),
    }
    data = TensorDict(fields, batch_size=[ROWS])
    for key, value in {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": ROWS}.items():
        data[key] = NonTensorData(value)
    positions = torch.arange(PROMPT + LENGTH).expand(ids.shape)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}, data


def peak(kind: str, name: str) -> float:
    """MiB that a step adds at its peak, in a fresh process."""
    command = [sys.executable, "-m", "tests.frameworks.verl_cost", "--peak-of", kind, "--batch", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def kilobytes(field: str) -> int:
    """A line of this process's memory accounts."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-of", choices=KINDS)
    parser.add_argument("--batch", choices=["textworld", "scienceworld", "dense"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times-only", action="store_true")
    options = parser.parse_args()
    if options.peak_of:
        actor, given = Actor(options.peak_of), batch(options.batch)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        before = kilobytes("VmRSS")
        actor.step(*given)
        print((kilobytes("VmHWM") - before) / 1024)
        return
    actors = {kind: Actor(kind) for kind in KINDS}
    for name in [options.batch] if options.batch else ("textworld", "scienceworld", "dense"):
        given, times, found = batch(name), {kind: [] for kind in KINDS}, {}
        for _ in range(options.rounds):
            for kind, actor in actors.items():
                start = time.perf_counter()
                found[kind] = actor.step(*given)
                times[kind].append(time.perf_counter() - start)
        truth = {key: p.grad for key, p in actors["verl, logits"].model.named_parameters()}
        for kind, actor in actors.items():
            assert abs(found[kind] - found["verl, logits"]) <= 1e-5 * abs(found["verl, logits"]) + 1e-6, kind
            for key, p in actor.model.named_parameters():
                assert (p.grad - truth[key]).abs().max() <= 1e-4 * truth[key].abs().max(), (kind, key)
        share = float(given[1]["response_mask"].values().float().mean())
        best = {kind: min(values) for kind, values in times.items()}
        print(f"{name}: {share:.0%} of {ROWS} x {LENGTH} response tokens trained, {ROWS} x {PROMPT} prompt tokens")
        for kind in KINDS:
            memory = "" if options.times_only else f", peak {peak(kind, name):.0f} MiB"
            print(f"  {kind}: {best[kind]:.2f} s ({best[kind] / best['ours']:.2f}x){memory}", flush=True)


if __name__ == "__main__":
    main()
