"""Every kernel once, small, through the public functions: what compute-sanitizer watches, and what is repeated for equal bits.

python -m bench.kernels --device cuda --repeats 50
python -m bench.kernels --report kernels.jsonl      # one JSON line a case, at once: what happened, and which kernels were launched
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench import launches
from gigpo_fast import advantage, anchor
from gigpo_fast.logprob import Head, linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceRatio

ROWS, TOKENS, HIDDEN, VOCABULARY = 4, 6, 32, 5003  # an odd vocabulary: tails, and rows that are not aligned
OBJECTIVES = {
    "clip": PolicyObjective(),
    "dual clip, k3, entropy": PolicyObjective(
        surrogate=Clip(0.2, 0.28, dual=3.0), divergence=KLPenalty(0.05), entropy_bonus=EntropyBonus(0.01)
    ),
    "sequence ratio": PolicyObjective(ratio=SequenceRatio()),
}
KINDS = ("float32", "bfloat16", "float16", "float64")
Outputs = dict[str, Tensor]


def cases(device: torch.device, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """(name, function that returns values and gradients) of every path through the kernels, in these dtypes."""
    for kind in kinds:
        dtype = getattr(torch, kind)
        given = _inputs(device, dtype)
        yield f"rows, {kind}", lambda given=given: _rows(given, given["logits"])
        yield f"rows of a strided view, {kind}", lambda given=given: _rows(given, given["logits"][:, :, 1:-2])
        yield f"rows with softcap, {kind}", lambda given=given: _rows(given, given["logits"], softcap=8.0, temperature=given["temperature"])
        yield f"log-probs of a head, {kind}", lambda given=given: _scores(given)
        for name, objective in OBJECTIVES.items():
            yield f"fused loss, {name}, {kind}", lambda given=given, objective=objective: _loss(given, objective)
    yield "advantages of GiGPO", lambda: _advantages(device)
    numbers = torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(1)).to(device)
    yield "anchor ids of numbers", lambda: anchor.group_states(numbers, numbers % 3)._asdict()
    yield "anchor ids of bytes", lambda: anchor.group_states((numbers[:, None] + torch.arange(77, device=device)).to(torch.uint8))._asdict()


def run(device: torch.device, repeats: int, report: pathlib.Path | None = None, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Run every case `repeats` times; returns what failed, was not finite or differed from the first time."""
    wrong, launched = [], launches.watched()

    def tell(name: str, result: str, found: list[str]) -> None:
        if report is not None:
            line = {"name": name, "result": result, "note": "; ".join(found), "kernels": sorted(launched)}
            with report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    for name, function in cases(device, kinds):
        launched.clear()
        launched.told = functools.partial(tell, name, "begun", [])
        try:
            found = _repeated(function, repeats)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:  # the next case may run; after a fault of the device none does, and each says so
            found = [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
        wrong += [f"{name}: {what}" for what in found]
        print(f"  {'WRONG' if found else 'ok   '}  {name}, {repeats} times", flush=True)
        tell(name, "failed" if found else "passed", found)
    launched.told = None
    return wrong


def _repeated(function: Callable[[], Outputs], repeats: int) -> list[str]:
    first = function()
    infinite = [key for key, value in first.items() if value.is_floating_point() and not value.isfinite().all()]
    differs: set[str] = set()
    for _ in range(repeats - 1):
        again = function()
        differs |= {key for key, value in first.items() if not torch.equal(value, again[key])}
    return [f"{key} is not finite" for key in infinite] + [f"{key} differs between two of {repeats} runs" for key in sorted(differs)]


def _inputs(device: torch.device, dtype: torch.dtype) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    given = {
        "hidden": normal(ROWS, TOKENS, HIDDEN),
        "weight": normal(VOCABULARY, HIDDEN) / HIDDEN**0.5,
        "bias": normal(VOCABULARY),
        "logits": 4 * normal(ROWS, TOKENS, VOCABULARY),
    }
    given = {name: value.to(device, dtype).requires_grad_() for name, value in given.items()}
    numbers = {
        "advantages": normal(ROWS, 1).expand(ROWS, TOKENS) * (torch.arange(ROWS) % 3 != 0)[:, None],
        "old_log_probs": normal(ROWS, TOKENS) - 8.5,
        "ref_log_probs": normal(ROWS, TOKENS) - 8.5,
        "temperature": 0.5 + torch.rand(ROWS, TOKENS, generator=generator),
    }
    given |= {name: value.float().to(device) for name, value in numbers.items()}
    given["token_ids"] = torch.randint(0, VOCABULARY - 3, (ROWS, TOKENS), generator=generator).to(device)
    given["mask"] = (torch.rand(ROWS, TOKENS, generator=generator) < 0.7).to(device)
    return given


def _rows(given: Outputs, logits: Tensor, **options) -> Outputs:
    found = token_log_probs(logits, given["token_ids"], **options)
    (gradient,) = torch.autograd.grad((found.log_probs - 0.1 * found.entropy).sum(), given["logits"])
    return {**found._asdict(), "d logits": gradient}


def _scores(given: Outputs) -> Outputs:
    head = Head(given["weight"], given["bias"], logit_scale=1.25, softcap=8.0, vocab_size=VOCABULARY - 3)
    found = linear_token_log_probs(given["hidden"], head, given["token_ids"])
    return {**found._asdict(), **_gradients((found.log_probs - 0.1 * found.entropy).sum(), given)}


def _loss(given: Outputs, objective: PolicyObjective) -> Outputs:
    head = Head(given["weight"], given["bias"])
    reference = given["ref_log_probs"] if objective.divergence is not None else None
    operands = (given["hidden"], head, given["token_ids"], given["advantages"], given["mask"])
    output = linear_policy_loss(*operands, old_log_probs=given["old_log_probs"], ref_log_probs=reference, objective=objective)
    return {"loss": output.loss, **_gradients(output.loss, given)}


def _advantages(device: torch.device) -> Outputs:
    row = torch.arange(1000, device=device)
    rewards = torch.rand(1000, generator=torch.Generator().manual_seed(2)).to(device)
    found = advantage.gigpo_advantages(rewards, row // 25, row // 100, row % 7, gamma=0.95, scale="std")
    return found._asdict()


def _gradients(loss: Tensor, given: Outputs) -> Outputs:
    names = ("hidden", "weight", "bias")
    return {f"d {name}": gradient for name, gradient in zip(names, torch.autograd.grad(loss, [given[name] for name in names]))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--repeats", type=int, default=1, help="how often each case runs; the bits must be equal")
    parser.add_argument("--report", type=pathlib.Path, help="append a line of JSON a case to this file")
    parser.add_argument("--dtypes", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    options = parser.parse_args(arguments)
    kinds = tuple(options.dtypes.split(","))
    if not set(kinds) <= set(KINDS):
        parser.error(f"--dtypes must be of {', '.join(KINDS)}, got {options.dtypes}")
    wrong = run(torch.device(options.device), options.repeats, options.report, kinds)
    print("\n".join(wrong) or "every kernel ran, and every run gave the same bits")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
