"""The problems that are measured: ours, the peers, the float64 answer, the shapes' batches and the physical limits of each."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from bench import exact, heads, logits, losses, shapes
from bench.peers import Registry
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_grpo_loss, linear_policy_loss
from gigpo_fast.objective import NoRatio, PolicyObjective, Reinforce


class Limit(NamedTuple):
    """Work that nothing exact can do without; its time is `passes` times that of `run`."""

    name: str
    run: Callable[[], None]
    passes: float = 1.0


class Problem(NamedTuple):
    """Functions take `batch.arguments`, return a loss or one number a token, and are differentiated to `batch.leaves`."""

    name: str
    ours: Callable
    peers: Registry
    batch: Callable
    exact: Callable
    limits: Callable  # (Shape, batch) -> list of Limit


def bare_products(shape: shapes.Shape, batch) -> list[Limit]:
    """The matrix products of the trained tokens, all logits in fresh memory; and of the active ones alone, where some are idle."""
    if isinstance(batch, shapes.Batch):
        hidden, active = batch.hidden.detach()[batch.mask], batch.hidden.detach()[batch.mask & (batch.advantages != 0)]
    else:
        hidden = batch.hidden.detach()
        active = hidden[: hidden.shape[0] - shape.idle_rows * (shape.scored // shape.rows)]
    weight = batch.weight.detach()

    def products(backward_rows: torch.Tensor) -> None:
        d_logits = (hidden @ weight.T)[: backward_rows.shape[0]]
        d_logits @ weight
        if not shape.frozen:
            d_logits.T @ backward_rows

    found = [Limit("bare GEMMs", lambda: products(hidden))]
    if shape.active < 1:
        found.append(Limit("bare GEMMs, idle rows forward only", lambda: products(active)))
    return found


def copies(shape: shapes.Shape, batch: shapes.Rows) -> list[Limit]:
    """The bytes of three passes over the logits: one read forward, one read and one write backward."""
    source, target = batch.logits.detach(), torch.empty_like(batch.logits)
    return [Limit("1.5 copies of the logits", lambda: target.copy_(source), 1.5)]


def _policy(batch: shapes.Batch):
    return linear_grpo_loss(
        batch.hidden, batch.weight, batch.token_ids, batch.advantages, batch.mask, old_log_probs=batch.old_log_probs
    ).loss


def _likelihood(hidden, weight, token_ids):
    ones = torch.ones(token_ids.shape, device=hidden.device)
    objective = PolicyObjective(ratio=NoRatio(), surrogate=Reinforce())
    return linear_policy_loss(hidden, weight, token_ids, ones, ones.bool(), objective=objective).loss


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(shapes.LINEAR, _policy, losses.POLICY, shapes.policy_batch, exact.policy, bare_products),
        Problem(
            shapes.SCORES,
            lambda *arguments: linear_token_log_probs(*arguments).log_probs,
            heads.PEERS,
            shapes.scored_batch,
            exact.scores,
            bare_products,
        ),
        Problem(shapes.LIKELIHOOD, _likelihood, losses.LIKELIHOOD, shapes.scored_batch, exact.likelihood, bare_products),
        Problem(
            shapes.LOGITS, lambda *arguments: token_log_probs(*arguments).log_probs, logits.PEERS, shapes.logits_batch, exact.rows, copies
        ),
    )
}
