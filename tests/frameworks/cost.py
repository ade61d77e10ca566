"""What the cost measurements of trainers share: a model with a large head, rows of recorded games, peak memory in a process of its own."""

import pathlib
import subprocess
import sys
import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.rollout_steps import steps as recorded_steps

BATCHES = ("textworld", "scienceworld", "dense")
VOCABULARY, ROWS, LENGTH, PROMPT = 151_936, 4, 256, 64


def small_model() -> Qwen2ForCausalLM:
    """Two layers below a head as large as that of a real model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))


def rows_of(name: str) -> tuple[Tensor, Tensor]:
    """(ids, trained), (ROWS, PROMPT + LENGTH) int64: one recorded trajectory a row (observation, action, ...), or everything trained."""
    ids = torch.randint(100, VOCABULARY, (ROWS, PROMPT + LENGTH), generator=torch.Generator().manual_seed(0))
    trained = torch.ones(ROWS, PROMPT + LENGTH, dtype=torch.int64)
    if name == "dense":
        return ids, trained
    steps = recorded_steps(name)
    for row, first in enumerate([i for i, step in enumerate(steps) if step["step"] == 0][:ROWS]):
        pairs = [(word, 0) for word in _numbers(steps[first]["obs"])][:PROMPT]
        pairs = [(100, 0)] * (PROMPT - len(pairs)) + pairs
        for step, after in zip(steps[first:], steps[first + 1 :]):
            pairs += [(word, 1) for word in _numbers(step["action"])] + [(word, 0) for word in _numbers(after["obs"])]
            if len(pairs) >= PROMPT + LENGTH:
                break
        ids[row], trained[row] = torch.tensor(pairs[: PROMPT + LENGTH]).T
    return ids, trained


def peak_of(module: str, kind: str, name: str) -> float:
    """MiB that a step adds at its peak: `python -m module --peak-of kind --batch name` prints them."""
    command = [sys.executable, "-m", module, "--peak-of", kind, "--batch", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def added_at_peak(step: Callable[[], object]) -> float:
    """MiB that `step` adds to this process at its peak (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _kilobytes("VmRSS")
    step()
    return (_kilobytes("VmHWM") - before) / 1024


def _numbers(text: str) -> list[int]:
    """A number of the vocabulary for each word; a real tokenizer would make somewhat more of them."""
    return [100 + zlib.crc32(word.encode()) % (VOCABULARY - 100) for word in text.split()]


def _kilobytes(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
