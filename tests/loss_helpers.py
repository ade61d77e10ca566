"""Batches, objectives and calls that the tests of the losses share."""

import random
import re
from itertools import combinations
from types import SimpleNamespace

import torch
from torch import Tensor

from gigpo_fast.head import Head
from gigpo_fast.loss import linear_policy_loss, policy_loss
from gigpo_fast.objective import (
    K1,
    K2,
    K3,
    AbsoluteKL,
    Clip,
    EntropyBonus,
    KLPenalty,
    NoRatio,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    StraightThrough,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
)

AXES = {
    "ratio": [TokenRatio(), TokenRatio((-0.4, 0.5)), TokenRatio(None), SequenceRatio(), SequenceRatio(stop_gradient_mean=True), NoRatio()],
    "surrogate": [Clip(), Clip(0.2, 0.28), Clip(dual=1.3), Clip(ceiling=1.1), Clip(0.1, 0.4, dual=3.0, ceiling=4.0), Reinforce()],
    "divergence": [
        None, KLPenalty(0.1, K1()), KLPenalty(0.1, K2()), KLPenalty(0.1, K3()), KLPenalty(0.1, AbsoluteKL()),
        KLPenalty(0.1, StraightThrough(K1())), KLPenalty(0.1, StraightThrough(K3())), KLPenalty(0.1, K3(0.5, 0.2)), KLPenalty(0.1, K3(None)),
        KLPenalty(0.1, K3(), importance_weighted=True), KLPenalty(0.1, K3(), own_mask=True),
    ],
    "weighting": [None, TokenWeights()],
    "entropy_bonus": [None, EntropyBonus(0.05), EntropyBonus(-0.02)],
    "aggregation": [TokenMean(), TokenSum(), SequenceMeanTokenSum(), SequenceMeanTokenMean(), SequenceMeanTokenSumNorm(10.0)],
}  # fmt: skip


def covering_objectives() -> list[PolicyObjective]:
    """A small set in which every pair of options of two blocks occurs together at least once; last the bare ones, which alone skip tokens."""
    missing = {((a, i), (b, j)) for a, b in combinations(AXES, 2) for i in range(len(AXES[a])) for j in range(len(AXES[b]))}
    draw, found = random.Random(0), []
    while missing:
        (a, i), (b, j) = min(missing)
        picks = []
        for _ in range(12):  # of a dozen random ones with the first missing pair, the one with most missing pairs
            pick = {name: draw.randrange(len(options)) for name, options in AXES.items()} | {a: i, b: j}
            picks.append((len(missing & set(combinations(pick.items(), 2))), pick))
        pick = max(picks, key=lambda entry: entry[0])[1]
        missing -= set(combinations(pick.items(), 2))
        found.append(PolicyObjective(**{name: AXES[name][at] for name, at in pick.items()}))
    return found + bare_objectives()


def bare_objectives() -> list[PolicyObjective]:
    """Without divergence and entropy bonus: zero advantage is zero work."""
    return [
        PolicyObjective(ratio, surrogate, aggregation=AXES["aggregation"][(i + j) % 5])
        for i, ratio in enumerate(AXES["ratio"]) for j, surrogate in enumerate((Clip(0.2, 0.28), Clip(0.1, 0.4, dual=3.0, ceiling=4.0), Reinforce()))
    ]  # fmt: skip


def describe(objective: PolicyObjective) -> str:
    """A short id of an objective."""
    return "-".join(str(getattr(objective, name)).replace("()", "") for name in AXES if getattr(objective, name) is not None)


def make_batch(shape=(3, 6), *, hidden=8, vocabulary=23, dtype=torch.float32, seed=0, trained=0.75) -> SimpleNamespace:
    """A batch of tokens with a head. `old` and `ref` lie around the policy's own log-probs."""
    g = torch.Generator().manual_seed(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    b = SimpleNamespace(
        hidden=normal(*shape, hidden).to(dtype), weight=(0.6 * normal(vocabulary, hidden)).to(dtype), bias=(0.3 * normal(vocabulary)).to(dtype),
        token_ids=torch.randint(vocabulary, shape, generator=g), advantages=normal(*shape).to(compute),
        mask=torch.rand(shape, generator=g) < trained, weights=0.2 + torch.rand(shape, generator=g).to(compute),
        kl_mask=torch.rand(shape, generator=g) < 0.6,
    )  # fmt: skip
    log_p = torch.log_softmax(b.hidden.double() @ b.weight.double().T + b.bias.double(), -1)
    b.log_probs = log_p.gather(-1, b.token_ids[..., None])[..., 0].to(dtype)
    b.entropy = -(log_p.exp() * log_p).sum(-1).to(dtype)
    b.old = (b.log_probs.double() - 0.3 * normal(*shape)).to(compute)
    b.ref = (b.log_probs.double() - 0.4 * normal(*shape)).to(compute)
    vars(b).update(_extras(b, shape, normal, g, compute))
    return b


def _extras(b: SimpleNamespace, shape, normal, g, compute) -> dict[str, Tensor]:
    """What further blocks read; a row is one answer, two rows are one group."""
    uniform = lambda: torch.rand(shape, generator=g).to(compute)  # noqa: E731
    near = lambda spread: (b.log_probs.double() - spread * normal(*shape)).to(compute)  # noqa: E731
    place = torch.arange(b.mask.numel()).view(shape)
    rows = place // shape[-1] if len(shape) == 2 else torch.zeros_like(place)
    return {
        "rollout_log_probs": near(0.2), "teacher_log_probs": near(0.5), "previous_log_probs": near(0.4),
        "clip_low": 0.1 + 0.2 * uniform(), "clip_high": 0.1 + 0.2 * uniform(), "scores": normal(*shape).to(compute),
        "group_spread": (uniform() - 0.3).clamp(min=0), "correct_rate": 0.2 + 0.6 * uniform(), "correct": rows % 2 == 0,
        "group_ids": 3 - rows // 2, "segment_ids": place // 3 + 100 * rows, "token_keys": place,
        "position_ids": 3 * place + place % 3, "expected_discriminator": 0.2 * normal(*shape).to(compute),
    }  # fmt: skip


EXTRAS = ("rollout_log_probs", "teacher_log_probs", "previous_log_probs", "clip_low", "clip_high", "scores", "group_spread", "correct_rate")
EXTRAS += ("correct", "group_ids", "segment_ids", "token_keys", "position_ids", "expected_discriminator")


def keywords_of(b: SimpleNamespace, objective: PolicyObjective, *, on_policy: bool = False) -> dict:
    """The keywords that an objective needs of a batch."""
    found: dict = {} if on_policy else {"old_log_probs": b.old}
    if objective.needs_reference:
        found["ref_log_probs"] = b.ref
    if objective.reads:
        found["extras"] = {name: getattr(b, name) for name in objective.reads}
    if getattr(b, "sequence_ids", None) is not None:
        found["sequence_ids"] = b.sequence_ids
    return found


def run_linear(b: SimpleNamespace, objective: PolicyObjective, *, on_policy=False, upstream=1.0, head=None, **keywords) -> SimpleNamespace:
    """linear_policy_loss with all gradients: .loss .metrics .hidden .weight .bias."""
    hidden, weight, bias = (value.detach().clone().requires_grad_() for value in (b.hidden, b.weight, b.bias))
    head = Head(weight, bias) if head is None else head(weight, bias)
    keywords = keywords_of(b, objective, on_policy=on_policy) | keywords
    out = linear_policy_loss(hidden, head, b.token_ids, b.advantages, b.mask, objective=objective, **keywords)
    (upstream * out.loss).backward()
    return SimpleNamespace(loss=out.loss.detach(), metrics=out.metrics, hidden=hidden.grad, weight=weight.grad, bias=bias.grad, output=out)


def run_policy(b: SimpleNamespace, objective: PolicyObjective, *, on_policy=False, upstream=1.0, **keywords) -> SimpleNamespace:
    """policy_loss with all gradients: .loss .metrics .log_probs .entropy."""
    log_probs, entropy = b.log_probs.detach().clone().requires_grad_(), b.entropy.detach().clone().requires_grad_()
    keywords = keywords_of(b, objective, on_policy=on_policy) | ({"entropy": entropy} if objective.needs_entropy else {}) | keywords
    out = policy_loss(log_probs, b.advantages, b.mask, objective=objective, **keywords)
    (upstream * out.loss).backward()
    return SimpleNamespace(loss=out.loss.detach(), metrics=out.metrics, log_probs=log_probs.grad, entropy=entropy.grad, output=out)


def change(b: SimpleNamespace, **values: Tensor) -> SimpleNamespace:
    """A copy of a batch with some tensors replaced."""
    return SimpleNamespace(**{**vars(b), **values})


def per_token(b: SimpleNamespace, function) -> SimpleNamespace:
    """The batch with `function` applied to every tensor that has one entry a token."""
    names = ("hidden", "token_ids", "advantages", "mask", "weights", "kl_mask", "log_probs", "entropy", "old", "ref")
    names += tuple(name for name in EXTRAS if hasattr(b, name))
    names += ("sequence_ids",) if getattr(b, "sequence_ids", None) is not None else ()
    return change(b, **{name: function(getattr(b, name)) for name in names})


def smallest_chunk(b: SimpleNamespace) -> int:
    """The least chunk_bytes that this head takes, as the error message names it."""
    try:
        linear_policy_loss(b.hidden, b.weight, b.token_ids, b.advantages, b.mask, objective=PolicyObjective(), chunk_bytes=1)
    except ValueError as error:
        return int(re.search(r"at least (\d+) bytes", str(error)).group(1))
    raise AssertionError("chunk_bytes=1 was taken")


def one_row(*values):
    return torch.tensor([values])


def all_trained(like):
    return torch.ones(like.shape, dtype=torch.bool)
