"""What one training step costs with TRL's head and with ours: time in one interleaved run, peak memory in a process of each.

python -m tests.frameworks.trl_cost          # a head of 151,936 words, batches from recorded rollouts and a dense one
"""

import argparse
import time
import warnings

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from gigpo_fast.integrations.trl import FusedGRPOTrainer
from tests.frameworks.cost import BATCHES, LENGTH, PROMPT, ROWS, added_at_peak, peak_of, rows_of, small_model
from tests.frameworks.trl_runs import tokenizer

TRAINERS = {"TRL": GRPOTrainer, "ours": FusedGRPOTrainer}


def make_trainer(kind: str, out: str = "unused"):
    model = small_model()
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


def batch(name: str) -> dict[str, torch.Tensor]:
    """Rows as TRL makes them."""
    ids, mask = rows_of(name)
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-of", choices=TRAINERS)
    parser.add_argument("--batch", choices=BATCHES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.peak_of:
        trainer, inputs = make_trainer(options.peak_of), batch(options.batch)
        print(added_at_peak(lambda: step(trainer, inputs)))
        return
    trainers = {kind: make_trainer(kind) for kind in TRAINERS}
    for name in [options.batch] if options.batch else BATCHES:
        inputs, times = batch(name), {kind: [] for kind in TRAINERS}
        losses = {}
        for _ in range(options.rounds):
            for kind, trainer in trainers.items():
                start = time.perf_counter()
                losses[kind] = step(trainer, inputs)
                times[kind].append(time.perf_counter() - start)
        assert abs(losses["ours"] - losses["TRL"]) <= 1e-5 * abs(losses["TRL"]) + 1e-6
        best, peaks = (
            {kind: min(found) for kind, found in times.items()},
            {kind: peak_of("tests.frameworks.trl_cost", kind, name) for kind in TRAINERS},
        )
        share = float(inputs["tool_mask"].float().mean())
        print(
            f"{name}: {share:.0%} of {ROWS} x {LENGTH} tokens trained; time {best['TRL']:.2f} s / {best['ours']:.2f} s = "
            f"{best['TRL'] / best['ours']:.1f}x; peak {peaks['TRL']:.0f} / {peaks['ours']:.0f} MiB = {peaks['TRL'] / peaks['ours']:.1f}x"
        )


if __name__ == "__main__":
    main()
