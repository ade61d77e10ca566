"""Training one policy: play, give credit, take one step of AdamW, again. GRPO and GiGPO differ in two lines.

Both start from the same weights and the same random streams, see the same number of episodes, and use the same loss:
a clipped policy gradient averaged over the tokens the model wrote. GRPO gives every step of an episode the episode's
advantage; GiGPO adds how the step compares with the other steps of its group that were taken from the same board.
"""

import pathlib
import time
from dataclasses import dataclass

import torch

from gigpo_fast.advantage import gigpo_advantages, step_ids, to_tokens
from gigpo_fast.anchor import group_states
from gigpo_fast.loss import linear_gigpo_loss, linear_grpo_loss, rows_that_matter
from gigpo_fast.recipes import recipe
from gigpo_fast.rollouts import Recorder

from .episodes import Steps, play
from .frozen_lake import FrozenLakes, Tokenizer
from .policy import tiny_qwen2

ALGORITHMS = ("grpo", "gigpo")


@dataclass(frozen=True)
class Settings:
    algorithm: str
    seed: int
    updates: int = 150
    groups: int = 4  # of episodes that are compared with each other
    group_size: int = 8
    map_name: str = "4x4"
    slippery: bool = False
    learning_rate: float = 1e-3
    gamma: float = 0.95
    record: str | None = None  # a folder for the steps of every tenth update


def credit(steps: Steps, settings: Settings, update: int = 0) -> torch.Tensor:
    """(S,) advantages: the episode level is GRPO, both levels together are GiGPO."""
    group = steps.trajectory // settings.group_size
    anchor = group_states(steps.observations, group).ids
    levels = gigpo_advantages(steps.rewards, steps.trajectory, group, anchor, gamma=settings.gamma)
    used = levels.episode if settings.algorithm == "grpo" else levels.advantages
    if settings.record is not None:
        columns = {"task": group, "trajectory": steps.trajectory, "state": steps.observations, "action": steps.actions}
        columns |= {"reward": steps.rewards, "success": steps.solved[steps.trajectory], "valid": steps.valid_action}
        columns |= {"episode_advantage": levels.episode, "step_advantage": levels.step, "advantage": used, "state_id": anchor}
        weight = 0.0 if settings.algorithm == "grpo" else 1.0
        recorder = Recorder(pathlib.Path(settings.record) / f"{settings.algorithm}-seed{settings.seed}", every=10)
        recorder.save(update, columns, settings={"gamma": settings.gamma, "step_weight": weight, "scale": None, "statistics": "corrected"})
    return used


def train(settings: Settings, on_update=lambda: None) -> dict:
    """Train one policy; what happened at every update, as lists of numbers (`steps_to_goal` is None where no episode got there)."""
    torch.manual_seed(settings.seed)
    tokenizer = Tokenizer()
    model = tiny_qwen2(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    lakes = FrozenLakes(settings.groups * settings.group_size, map_name=settings.map_name, slippery=settings.slippery)
    generator = torch.Generator().manual_seed(settings.seed)

    curves = {name: [] for name in ("success", "invalid_actions", "steps_to_goal", "rows_without_forward")}
    start = time.perf_counter()
    for update in range(settings.updates):
        steps = play(model, lakes, tokenizer, seed=settings.seed * settings.updates + update, generator=generator)
        advantages = to_tokens(credit(steps, settings, update), step_ids(steps.mask))

        skipped = learn(model, optimizer, steps, advantages, settings.algorithm)
        curves["success"].append(steps.solved.float().mean().item())
        curves["invalid_actions"].append(1 - steps.valid_action.float().mean().item())
        curves["steps_to_goal"].append(steps.lengths[steps.solved].float().mean().item() if steps.solved.any() else None)
        curves["rows_without_forward"].append(skipped)
        on_update()
    return {"algorithm": settings.algorithm, "seed": settings.seed, "seconds": time.perf_counter() - start, **curves}


def learn(model, optimizer: torch.optim.Optimizer, steps: Steps, advantages: torch.Tensor, algorithm: str) -> float:
    """One optimiser step from one batch; the share of its rows that never entered the transformer.

    Those rows can change neither the loss nor its gradient, but the mean still counts their tokens. A batch without any row
    that matters (all groups failed, say) leaves the policy and the optimiser as they are.
    """
    loss_of = {"grpo": linear_grpo_loss, "gigpo": linear_gigpo_loss}[algorithm]
    keep = rows_that_matter(steps.mask, advantages, objective=recipe(algorithm).objective)
    if keep.any():
        hidden = model.model(input_ids=steps.prompts[keep]).last_hidden_state
        output = loss_of(
            hidden,
            model.lm_head.weight,
            steps.token_ids[keep],
            advantages[keep],
            steps.mask[keep],
            old_log_probs=steps.old_log_probs[keep],
            denominator=float(steps.mask.sum()),
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return 1 - keep.float().mean().item()
