"""What checking values costs on a CPU: every call under validation("auto") and under "metadata", in turns.

A batch of 16,384 steps is 16 trajectories of 32 steps for each of 32 tasks; labels are tensors. `cost` measures the time of this thread,
and compares the fastest tenths of many short runs: what else the machine does only ever adds. Run it on one thread.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import gigpo_fast
from gigpo_fast import advantage, loss, pairwise, recipes, reward

STEPS, LENGTH, TRAJECTORIES, STATES = 16_384, 32, 16, 40
A = advantage


class Cost(NamedTuple):
    """Of one call, in microseconds."""

    microseconds: float  # without a look at values
    checks: float  # what looking at them adds

    @property
    def share(self) -> float:
        """The checks' part of a call without them."""
        return self.checks / self.microseconds


def cost(call: Callable[[], object], *, seconds: float = 0.6, run: float = 1e-3) -> Cost:
    """Short runs of `call` in turns, checked and not."""
    with gigpo_fast.validation("metadata"):
        call()
        once = min(_seconds(call, 1) for _ in range(3))
        repeats = max(1, round(run / max(once, 1e-7)))
    rounds = max(9, round(seconds / (2 * repeats * max(once, 1e-7))))
    found = {"auto": [], "metadata": []}
    for number in range(rounds):
        for level in sorted(found, reverse=bool(number % 2)):
            with gigpo_fast.validation(level):
                found[level].append(_seconds(call, repeats) / repeats)
    checked, plain = (statistics.quantiles(found[level], n=10)[0] * 1e6 for level in ("auto", "metadata"))
    return Cost(plain, checked - plain)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    started = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return (time.thread_time_ns() - started) * 1e-9


def step_calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Every estimator over steps, by name; scores of the given dtype."""
    g = torch.Generator().manual_seed(0)
    row = torch.arange(STEPS)
    trajectory, group = row // LENGTH, row // (LENGTH * TRAJECTORIES)
    anchor, action = torch.randint(0, STATES, (STEPS,), generator=g), torch.randint(0, 4, (STEPS,), generator=g)
    step, success = row % LENGTH, trajectory % 3 == 0
    rewards = (torch.rand(STEPS, generator=g, dtype=torch.float64) * (torch.rand(STEPS, generator=g) < 0.1)).to(dtype)
    scores = torch.rand(STEPS, generator=g, dtype=torch.float64).to(dtype)
    totals = torch.rand(STEPS // LENGTH, generator=g, dtype=torch.float64).to(dtype)[trajectory]
    flags, share = rewards > 0, 0.05 + 0.9 * torch.rand(STEPS, generator=g).to(dtype)
    parts, lengths = torch.rand(STEPS, 3, generator=g).to(dtype), torch.randint(10, 100, (STEPS,), generator=g)
    valid = row % 97 != 5
    shuffled = torch.randperm(STEPS, generator=g)
    mixed = {"step": step[shuffled], "valid": valid[shuffled]}
    episode, labels = (rewards, trajectory, group), (trajectory, group, anchor)
    mixed_labels = (rewards[shuffled], trajectory[shuffled], group[shuffled], anchor[shuffled])
    edges = A.transitions(*labels, success=success)
    agents, baselines = row % 4, torch.zeros(4, dtype=torch.float64)
    parent = torch.where(row < 64, -1, (row - 64) // 6)
    return {
        "discounted_returns": lambda: A.discounted_returns(rewards, trajectory, gamma=0.95),
        "discounted_returns step": lambda: A.discounted_returns(rewards, trajectory, gamma=0.95, step=step),
        "discounted_returns group": lambda: A.discounted_returns(rewards, trajectory, gamma=0.95, group=group),
        "group_advantages": lambda: A.group_advantages(scores, group, scale="std"),
        "group_advantages trajectory": lambda: A.group_advantages(totals, group, scale="std", trajectory=trajectory),
        "leave_one_out_advantages": lambda: A.leave_one_out_advantages(scores, group),
        "gigpo_advantages": lambda: A.gigpo_advantages(*episode, anchor, gamma=0.95, scale="std"),
        "gigpo_advantages step": lambda: A.gigpo_advantages(*episode, anchor, gamma=0.95, scale="std", step=step),
        "gigpo_advantages shuffled": lambda: A.gigpo_advantages(*mixed_labels, gamma=0.95, scale="std", **mixed),
        "gigpo_advantages episode_scores": lambda: A.gigpo_advantages(*episode, anchor, gamma=0.95, scale="std", episode_scores=totals),
        "graph_advantages": lambda: A.graph_advantages(*episode, anchor, success=success),
        "g2po_advantages": lambda: A.g2po_advantages(*episode, anchor, success=success, step_penalties=scores),
        "state_gae_advantages": lambda: A.state_gae_advantages(*episode, anchor),
        "action_advantages": lambda: A.action_advantages(*episode, anchor, action),
        "hindsight_advantages": lambda: A.hindsight_advantages(*episode, share),
        "hgpo_advantages": lambda: A.hgpo_advantages(*episode, anchor, gamma=0.95),
        "turn_baseline_advantages": lambda: A.turn_baseline_advantages(*episode),
        "turn_gain_advantages": lambda: A.turn_gain_advantages(*episode),
        "transitions": lambda: A.transitions(*labels, success=success, step=step),
        "success_distances": lambda: A.success_distances(edges),
        "group_moments": lambda: A.group_moments(scores, group),
        "normalise": lambda: A.normalise(scores, group, std_over="batch"),
        "normalised_sum": lambda: A.normalised_sum(parts, group),
        "gdpo_advantages": lambda: A.gdpo_advantages(parts, group),
        "gpg_advantages": lambda: A.gpg_advantages(scores, group),
        "leave_one_out_moments": lambda: A.leave_one_out_moments(scores, group),
        "scaled_leave_one_out_advantages": lambda: A.scaled_leave_one_out_advantages(scores, group),
        "max_at_k_advantages": lambda: A.max_at_k_advantages(scores, group, k=3),
        "pass_at_k_advantages": lambda: A.pass_at_k_advantages(flags, group, k=3),
        "maxrl_advantages": lambda: A.maxrl_advantages(flags, group),
        "opo_advantages": lambda: A.opo_advantages(scores, lengths, group),
        "rank_advantages": lambda: A.rank_advantages(scores, group),
        "running_baseline_advantages": lambda: A.running_baseline_advantages(scores, agents, baselines),
        "semantic_entropy": lambda: A.semantic_entropy(anchor, group),
        "tree_values": lambda: A.tree_values(scores, parent, depth=6),
        "tree_advantages": lambda: A.tree_advantages(scores, parent, scale="std"),
        "combined_labels": lambda: A.combined_labels(trajectory, group),
        "weighted_sum": lambda: reward.weighted_sum(parts, weights=[1.0, 0.5, 0.2]),
    }


def token_calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Every estimator over tokens, of 128 rows with 128 tokens; numbers of the given dtype."""
    g = torch.Generator().manual_seed(1)
    rows, width = 128, 128
    mask = torch.rand(rows, width, generator=g) > 0.2
    numbers = lambda *size: torch.rand(*size, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    rewards, values, old = numbers(rows, width), numbers(rows, width), -numbers(rows, width)
    per_row, steps = numbers(rows), A.step_ids(mask)
    turns = A.step_ids(mask, turns=True)
    per_step = numbers(int(turns.max()) + 1)
    sequence_ids = (torch.arange(rows) // 2)[:, None].expand(rows, width).contiguous()
    groups, squares = torch.arange(rows) // 8, numbers(rows, width)
    cuts = A.low_probability_cuts(old, mask, every=8)
    return {
        "step_ids": lambda: A.step_ids(mask),
        "to_tokens": lambda: A.to_tokens(per_row, steps),
        "to_tokens turns": lambda: A.to_tokens(per_step, turns),
        "token_returns": lambda: A.token_returns(rewards, mask, gamma=0.95),
        "token_returns sequence_ids": lambda: A.token_returns(rewards, mask, gamma=0.95, sequence_ids=sequence_ids),
        "turn_returns": lambda: A.turn_returns(rewards, mask, gamma=0.95),
        "gae_advantages": lambda: A.gae_advantages(rewards, values, mask, gamma=0.95, lam=0.9),
        "turn_gae_advantages": lambda: A.turn_gae_advantages(rewards, values, mask, turns, lam=0.9),
        "low_probability_cuts": lambda: A.low_probability_cuts(old, mask, every=8),
        "segment_advantages": lambda: A.segment_advantages(values, cuts.after, per_row, mask),
        "optimal_token_baseline_advantages": lambda: A.optimal_token_baseline_advantages(rewards, groups, old, squares, mask),
        "reinforce_plus_plus_advantages": lambda: A.reinforce_plus_plus_advantages(rewards, mask),
        "remax_advantages": lambda: A.remax_advantages(rewards, per_row, mask),
        "rescale": lambda: A.rescale(rewards, mask),
        "whiten": lambda: A.whiten(rewards, mask),
    }


def loss_calls() -> dict[str, Callable[[], object]]:
    """Losses and what goes with them: 16,384 tokens from log-probs, a fused step of 4096 tokens, 1024 pairs; forward and backward."""
    g = torch.Generator().manual_seed(2)
    rows, width = 128, 128
    uniform = lambda *size: torch.rand(*size, generator=g)  # noqa: E731
    mask, advantages = uniform(rows, width) > 0.2, uniform(rows, width) - 0.5
    log_probs, old, ref = (-uniform(rows, width) for _ in range(3))
    log_probs.requires_grad_()
    objective = recipes.recipe("grpo", kl_coefficient=0.1).objective
    tokens, hidden_size, vocabulary = 4096, 256, 4096
    hidden = torch.randn(tokens, hidden_size, generator=g).requires_grad_()
    weight = (uniform(vocabulary, hidden_size) - 0.5).requires_grad_()
    ids, few, fewer = torch.randint(0, vocabulary, (tokens,), generator=g), uniform(tokens) > 0.2, uniform(tokens) - 0.5
    sampled = -uniform(tokens) - 8
    whole = (-uniform(2048) * 30).requires_grad_()
    whole_ref, pairs = -uniform(2048) * 30, torch.arange(2048).view(1024, 2)
    dpo = recipes.recipe("dpo").objective
    clipped = recipes.recipe("grpo").objective

    def policy() -> None:
        loss.policy_loss(log_probs, advantages, mask, old_log_probs=old, ref_log_probs=ref, objective=objective).loss.backward()
        log_probs.grad = None

    def linear() -> None:
        loss.linear_policy_loss(hidden, weight, ids, fewer, few, old_log_probs=sampled, objective=clipped).loss.backward()
        hidden.grad = weight.grad = None

    def preference() -> None:
        pairwise.pairwise_loss(whole, pairs, ref_log_probs=whole_ref, objective=dpo).loss.backward()
        whole.grad = None

    return {
        "policy_loss": policy,
        "linear_policy_loss": linear,
        "pairwise_loss": preference,
        "plan_tokens": lambda: loss.plan_tokens(mask, advantages, objective=clipped),
    }
