"""The one table of shapes that all suites of the fused head use."""

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A batch of B rows of T tokens, hidden size H, vocabulary V; what share is trained, and of the rows has zero advantage."""

    name: str
    rows: int
    tokens: int
    hidden: int
    vocabulary: int
    trained: float
    idle_rows: float


CPU = (
    Shape("dense", 32, 128, 512, 32000, 1.0, 0.0),
    Shape("agent", 32, 128, 512, 32000, 0.35, 0.25),
)


class Batch(NamedTuple):
    """Inputs of one step; clipped tokens are among them."""

    hidden: Tensor  # (B, T, H), requires grad
    weight: Tensor  # (V, H), requires grad
    token_ids: Tensor  # (B, T)
    advantages: Tensor  # (B, T), one number a row
    mask: Tensor  # (B, T) bool: two contiguous turns a row, or everything
    old_log_probs: Tensor  # (B, T)


def make(shape: Shape) -> Batch:
    """A random batch of the shape; old log-probs lie around the policy's, so that some tokens are clipped."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    hidden, weight = normal(shape.rows, shape.tokens, shape.hidden), normal(shape.vocabulary, shape.hidden) / shape.hidden**0.5
    token_ids = torch.randint(0, shape.vocabulary, (shape.rows, shape.tokens), generator=generator)
    advantages = normal(shape.rows, 1)
    advantages[: int(shape.idle_rows * shape.rows)] = 0
    mask = torch.ones(shape.rows, shape.tokens, dtype=torch.bool)
    if shape.trained < 1:
        mask[:] = False
        turn = round(shape.trained * shape.tokens / 2)
        for start in (shape.tokens // 4, 3 * shape.tokens // 4):
            mask[:, start : start + turn] = True
    with torch.no_grad():
        logits = hidden.flatten(0, 1) @ weight.T
        chosen = logits.gather(1, token_ids.view(-1, 1)).view(shape.rows, shape.tokens) - logits.logsumexp(1).view(shape.rows, shape.tokens)
    old_log_probs = chosen + 0.2 * normal(shape.rows, shape.tokens)
    return Batch(hidden.requires_grad_(), weight.requires_grad_(), token_ids, advantages.expand_as(mask).contiguous(), mask, old_log_probs)
