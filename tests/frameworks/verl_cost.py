"""What one actor micro-batch costs in verl with its own heads and with ours: time in one interleaved run, peak memory in a process of each.

python -m tests.frameworks.verl_cost          # a head of 151,936 words, batches from recorded rollouts and a dense one
"""

import argparse
import contextlib
import time

import torch
from tensordict import NonTensorData, TensorDict
from transformers import Qwen2ForCausalLM
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils import torch_functional as verl_functional
from verl.workers.utils import losses

from gigpo_fast.integrations.verl import ppo_loss, use_fused_head
from tests.frameworks.cost import BATCHES, LENGTH, PROMPT, ROWS, added_at_peak, peak_of, rows_of, small_model
from tests.frameworks.verl_cases import actor_config

KINDS = ("verl, logits", "verl, fused", "ours")


class Actor:
    """A model in the state that verl's engine puts it into, and the loss that goes with it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.model = kind, small_model()
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


def batch(name: str) -> tuple[dict, TensorDict]:
    """The inputs of the model and the micro-batch, as verl's engine has them."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = rows_of(name)
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-of", choices=KINDS)
    parser.add_argument("--batch", choices=BATCHES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times-only", action="store_true")
    options = parser.parse_args()
    if options.peak_of:
        actor, given = Actor(options.peak_of), batch(options.batch)
        print(added_at_peak(lambda: actor.step(*given)))
        return
    actors = {kind: Actor(kind) for kind in KINDS}
    for name in [options.batch] if options.batch else BATCHES:
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
            memory = "" if options.times_only else f", peak {peak_of('tests.frameworks.verl_cost', kind, name):.0f} MiB"
            print(f"  {kind}: {best[kind]:.2f} s ({best[kind] / best['ours']:.2f}x){memory}", flush=True)


if __name__ == "__main__":
    main()
