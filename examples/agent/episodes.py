"""Playing: the policy's episodes of one update as rows, one row a step, the layout of step-wise agent trainers."""

from typing import NamedTuple

import torch
from torch import Tensor

from .frozen_lake import FrozenLakes, Tokenizer
from .policy import sample


class Steps(NamedTuple):
    """S steps in the order they were taken: all episodes' first steps, then their second ones, and so on."""

    observations: list[str]  # S texts, the anchor states
    prompts: Tensor  # (S, T) int64
    token_ids: Tensor  # (S, T) int64, the token that follows each prompt position: the action after the last one
    mask: Tensor  # (S, T) bool, True at the action alone
    old_log_probs: Tensor  # (S, T) float32, of the action when it was sampled; 0 elsewhere
    rewards: Tensor  # (S,) float32
    trajectory: Tensor  # (S,) int64
    valid_action: Tensor  # (S,) bool, the token was an action word
    solved: Tensor  # (episodes,) bool
    lengths: Tensor  # (episodes,) int64


def play(model, lakes: FrozenLakes, tokenizer: Tokenizer, *, seed: int, generator: torch.Generator) -> Steps:
    """Play every episode to its end. All that are still running share one forward pass a step; the boards are the whole
    state of the game, so no history and no cache are needed."""
    lakes.reset(seed)
    observations, trajectory, rewards, valid = [], [], [], []
    prompts, tokens, log_probs = [], [], []
    solved = torch.zeros(len(lakes.running), dtype=torch.bool)
    while any(lakes.running):
        players = [i for i, running in enumerate(lakes.running) if running]
        seen = [lakes.observations[i] for i in players]
        prompt = torch.tensor([tokenizer.encode(text) for text in seen])
        token, log_prob = sample(model, prompt, generator)
        words = [tokenizer.decode(t) for t in token.tolist()]
        paid = lakes.step(dict(zip(players, words, strict=True)))

        observations += seen
        trajectory += players
        rewards += [paid[i] for i in players]
        valid += [lakes.understands(word) for word in words]
        prompts.append(prompt), tokens.append(token), log_probs.append(log_prob)
        for i in players:
            solved[i] |= paid[i] > 0

    prompts, tokens, log_probs = torch.cat(prompts), torch.cat(tokens), torch.cat(log_probs)
    mask = torch.zeros_like(prompts, dtype=torch.bool)
    mask[:, -1] = True
    return Steps(
        observations=observations,
        prompts=prompts,
        token_ids=torch.cat([prompts[:, 1:], tokens[:, None]], dim=1),
        mask=mask,
        old_log_probs=torch.zeros(prompts.shape).masked_scatter(mask, log_probs),
        rewards=torch.tensor(rewards),
        trajectory=torch.tensor(trajectory),
        valid_action=torch.tensor(valid),
        solved=solved,
        lengths=torch.bincount(torch.tensor(trajectory), minlength=len(solved)),
    )
