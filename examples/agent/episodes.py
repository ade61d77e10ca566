"""Playing: the policy's episodes of one update as rows, one row a step, the layout of step-wise agent trainers."""

from typing import NamedTuple

import torch
from torch import Tensor

from .frozen_lake import FrozenLakes, Tokenizer
from .policy import next_token_log_probs


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
    actions: list[str]  # S words


def play(model, lakes: FrozenLakes, tokenizer: Tokenizer, *, seed: int, generator: torch.Generator) -> Steps:
    """Play every episode to its end. The board is the whole state of the game, so a prompt needs no history, and the policy
    stands still meanwhile, so each distinct board is put to the model once."""
    lakes.reset(seed)
    known: dict[str, Tensor] = {}  # board -> (V,) log-probs
    observations, trajectory, rewards, words = [], [], [], []
    tokens, log_probs = [], []
    solved = torch.zeros(len(lakes.running), dtype=torch.bool)
    while any(lakes.running):
        players = [i for i, running in enumerate(lakes.running) if running]
        seen = [lakes.observations[i] for i in players]
        new = [board for board in dict.fromkeys(seen) if board not in known]
        if new:
            known.update(zip(new, next_token_log_probs(model, _prompts(new, tokenizer)), strict=True))
        answers = torch.stack([known[board] for board in seen])
        chosen = torch.multinomial(answers.exp(), 1, generator=generator)
        said = [tokenizer.decode(token) for token in chosen[:, 0].tolist()]
        paid = lakes.step(dict(zip(players, said, strict=True)))

        observations += seen
        trajectory += players
        words += said
        rewards += [paid[i] for i in players]
        tokens.append(chosen)
        log_probs.append(answers.gather(1, chosen)[:, 0])
        for i in players:
            solved[i] |= paid[i] > 0

    prompts = _prompts(observations, tokenizer)
    mask = torch.zeros_like(prompts, dtype=torch.bool)
    mask[:, -1] = True
    return Steps(
        observations=observations,
        prompts=prompts,
        token_ids=torch.cat([prompts[:, 1:], torch.cat(tokens)], dim=1),
        mask=mask,
        old_log_probs=torch.zeros(prompts.shape).masked_scatter(mask, torch.cat(log_probs)),
        rewards=torch.tensor(rewards),
        trajectory=torch.tensor(trajectory),
        valid_action=torch.tensor([lakes.understands(word) for word in words]),
        solved=solved,
        lengths=torch.bincount(torch.tensor(trajectory), minlength=len(solved)),
        actions=words,
    )


def _prompts(boards: list[str], tokenizer: Tokenizer) -> Tensor:
    return torch.tensor([tokenizer.encode(board) for board in boards])
