"""The batches that losses are compared on: ordinary ones, and those that losses in the wild have got wrong."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

HIDDEN, VOCABULARY = 16, 53
_SHAPE = (4, 7)
_GARBAGE = (math.nan, math.inf, -math.inf, 3e38)


def _one_token(b):
    b.mask[:] = False
    b.mask[2, 3] = True


def _extreme(b):
    b.mask[:] = True
    b.log_ratio[0, 1:4] = torch.tensor(
        (25.0, 100.0, 1e4), dtype=torch.float32, device="cpu"
    )  # of one sign within a row: a sequence's mean must not be a difference of huge numbers
    b.log_ratio[1, 1:4] = torch.tensor((-25.0, -100.0, -1e4), dtype=torch.float32, device="cpu")
    b.log_ratio[2, 3], b.log_ratio[3, 3] = 21.0, -21.0


def _zero(b):
    b.advantages[0] = 0
    b.advantages[2, ::2] = 0


def _packed(b):
    b.sequence_ids = torch.where(b.mask, torch.arange(28, device="cpu") // 7, -1)


def _units(b):
    b.sequence_ids = torch.where(b.mask, torch.arange(4, device="cpu")[:, None] * 2 + (torch.arange(7, device="cpu") > 2), -1)


def _head(b):
    b.bias = 0.3 * torch.arange(VOCABULARY, dtype=torch.float64, device="cpu").sin()
    b.logit_scale, b.softcap, b.temperature = 1.5, 5.0, 0.7


# name -> (shape of the tokens, what the case changes in a drawn batch)
LOSS_CASES: dict[str, tuple[tuple[int, ...], Callable[[SimpleNamespace], object]]] = {
    "all tokens trained": (_SHAPE, lambda b: b.mask.fill_(True)),
    "holes and an empty row": (_SHAPE, lambda b: b.mask[1].fill_(False)),
    "as many rows as columns": ((5, 5), lambda b: None),
    "on-policy": (_SHAPE, lambda b: setattr(b, "on_policy", True)),
    "extreme log-ratios": (_SHAPE, _extreme),
    "zero advantages": (_SHAPE, _zero),
    "garbage at untrained tokens": (_SHAPE, lambda b: setattr(b, "garbage", True)),
    "two long rows": ((2, 24), lambda b: None),
    "one token": (_SHAPE, _one_token),
    "nothing trained": (_SHAPE, lambda b: b.mask.fill_(False)),
    "given denominator": (_SHAPE, lambda b: setattr(b, "denominator", 1000.0)),
    "packed": ((28,), _packed),
    "sequences that are not rows": (_SHAPE, _units),
    "bias, scale, softcap, temperature": (_SHAPE, _head),
    "large logits": (_SHAPE, lambda b: b.weight.mul_(16)),  # to 100: low-precision logits lose a tenth of a probability there
}
# What usually makes a loss fail a case.
HINTS = {
    "all tokens trained": "a sign (of the loss, the clip or the KL), a bound, or a missing detach",
    "holes and an empty row": "a mean over every slot: divide by mask.sum(), not by mask.numel() or a mean over columns",
    "as many rows as columns": "something broadcast along the wrong dimension",
    "on-policy": "old_log_probs=None: the ratio is 1 and its gradient flows, exp(log_probs - log_probs.detach())",
    "extreme log-ratios": "exp of an unbounded log-ratio: clamp it to +-20 before exp",
    "zero advantages": "a gradient where the advantage is 0, or torch.maximum's half gradients at a tie",
    "garbage at untrained tokens": "a mask that is multiplied: NaN * 0 is NaN; use torch.where before anything else",
    "two long rows": "a mean of rows' means where the mean over tokens is meant, or the other way round",
    "one token": "a standard deviation or a mean that leaves no value for one token",
    "nothing trained": "0 / 0: clamp the denominator to at least 1",
    "given denominator": "a denominator that is counted here although one is given",
    "packed": "rows taken for sequences: packed tokens are (N,)",
    "sequences that are not rows": "rows taken for sequences: sequence_ids says what one is",
    "bias, scale, softcap, temperature": "one of the head's features left out, or in another order",
    "large logits": "logits rounded to the operands' dtype: multiply into float32",
}
HEAD_CASES = ("bias, scale, softcap, temperature", "large logits")  # for losses that take a head


def draw(name: str) -> SimpleNamespace:
    """The float64 batch of a case, the same in every process."""
    shape, change = LOSS_CASES[name]
    g = torch.Generator(device="cpu").manual_seed(sum(map(ord, name)))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64, device="cpu")

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=g, dtype=torch.float64, device="cpu")

    batch = SimpleNamespace(
        log_probs=-3 * uniform(*shape), entropy=3 * uniform(*shape),  # what a loss from log-probs reads
        hidden=normal(*shape, HIDDEN), weight=0.5 * normal(VOCABULARY, HIDDEN), bias=None, logit_scale=1.0, softcap=None, temperature=1.0,
        token_ids=torch.randint(VOCABULARY, shape, generator=g, device="cpu"),  # what a linear loss reads
        advantages=normal(*shape), mask=uniform(*shape) < 0.75, weights=0.1 + uniform(*shape), kl_mask=uniform(*shape) < 0.5,
        log_ratio=0.4 * normal(*shape), ref_gap=0.5 * normal(*shape),  # log pi - log pi_old, log pi - log pi_ref
        sequence_ids=None, denominator=None, on_policy=False, garbage=False,
    )  # fmt: skip
    batch.__dict__.update(_extras(shape, normal, uniform))
    change(batch)
    return batch


def _extras(shape: tuple[int, ...], normal: Callable[..., Tensor], uniform: Callable[..., Tensor]) -> dict[str, Tensor]:
    """What further blocks read. Log-probs of other policies are drawn as distances from the policy's."""
    count = math.prod(shape)
    place = torch.arange(count, device="cpu").view(shape)
    rows = place // (shape[-1] if len(shape) == 2 else 7)
    return {
        "rollout_log_probs": 0.3 * normal(*shape), "teacher_log_probs": 0.5 * normal(*shape), "previous_log_probs": 0.4 * normal(*shape),
        "clip_low": 0.1 + 0.3 * uniform(*shape), "clip_high": 0.1 + 0.3 * uniform(*shape),
        "scores": normal(*shape), "group_spread": (uniform(*shape) - 0.3).clamp(min=0),
        "correct": rows % 2 == 0, "correct_rate": 0.2 + 0.6 * uniform(*shape), "group_ids": 5 - rows // 2,
        "segment_ids": rows * 100 + (place % 7) // 3, "token_keys": place * 7919 - 3,
        "position_ids": 3 * place + place % 3, "expected_discriminator": 0.2 * normal(*shape),
    }  # fmt: skip


def spoil(batch: SimpleNamespace, *tables: dict[str, Tensor]) -> None:
    """Fill untrained tokens, in place, with what must not matter."""
    count = int((~batch.mask).sum())
    for table in tables:
        for key, value in table.items():
            if value.is_floating_point() and value.shape[: batch.mask.dim()] == batch.mask.shape:
                noise = [_GARBAGE[(index + len(key)) % len(_GARBAGE)] for index in range(count)]
                noise = torch.tensor(noise, dtype=torch.float32, device=value.device).to(value.dtype)
                value[~batch.mask] = noise.view(-1, *[1] * (value.dim() - batch.mask.dim())).expand_as(value[~batch.mask])
    wrong = torch.tensor((-100, 2**40, VOCABULARY), dtype=torch.int64, device="cpu")
    batch.token_ids[~batch.mask] = wrong[torch.arange(count, device="cpu") % 3]
