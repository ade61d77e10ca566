"""FrozenLake as a text game: gymnasium's environment, a prompt of grid text in, one action word out.

Many episodes run side by side, each in an environment of its own, and the tokenizer is as small as the language of
the game. The observation is the board with the player marked P, the same text as in the recorded rollouts:

    P F F F
    F H F H
    F F F H
    H F F G

An answer that is no action word leaves the board as it is and costs a step, without reaching the environment.
"""

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import MAPS

ACTIONS = ("left", "down", "right", "up")  # in gymnasium's order
# Steps until an episode is cut off. On slippery ice gymnasium's own limits: with 30 steps even the best player of the 4x4
# map reaches the goal in 35 % of the episodes only, with 100 in 74 %.
HORIZON = {("4x4", False): 30, ("8x8", False): 100, ("4x4", True): 100, ("8x8", True): 200}
SHORTEST = {"4x4": 6, "8x8": 14}  # steps of the shortest way where the ice is not slippery


class Tokenizer:
    """One token a board cell, line break, action word, and one that asks for the action."""

    TOKENS = ("S", "F", "H", "G", "P", "\n", ">", *ACTIONS)

    def __init__(self):
        self.number = {token: i for i, token in enumerate(self.TOKENS)}

    def __len__(self) -> int:
        return len(self.TOKENS)

    def encode(self, observation: str) -> list[int]:
        """The prompt: the board, then the token after which the model answers."""
        return [self.number[token] for token in observation.replace(" ", "") + ">"]

    def decode(self, token_id: int) -> str:
        return self.TOKENS[token_id]


class FrozenLakes:
    """`count` episodes of one map side by side. `step` plays those that are still running."""

    def __init__(self, count: int, *, map_name: str = "4x4", slippery: bool = False):
        self.board = MAPS[map_name]
        self.horizon = HORIZON[map_name, slippery]
        self.environments = [
            gymnasium.make("FrozenLake-v1", desc=self.board, is_slippery=slippery, max_episode_steps=self.horizon, disable_env_checker=True)
            for _ in range(count)
        ]
        self.texts = [self._draw(cell) for cell in range(len(self.board) * len(self.board[0]))]
        self.observations = [""] * count
        self.running = [False] * count

    def reset(self, seed: int) -> None:
        """Start every episode anew; equal seeds give equal slips."""
        for i, environment in enumerate(self.environments):
            cell, _ = environment.reset(seed=seed * len(self.environments) + i)
            self.observations[i] = self.texts[cell]
        self.running = [True] * len(self.environments)
        self.steps = 0

    def step(self, words: dict[int, str]) -> dict[int, float]:
        """Play one word in each episode named by its number; the rewards. Ended episodes leave `running`."""
        rewards = {}
        self.steps += 1
        for i, word in words.items():
            rewards[i], ended = 0.0, False
            if self.understands(word):
                cell, reward, ended, _, _ = self.environments[i].step(ACTIONS.index(word))
                self.observations[i], rewards[i] = self.texts[int(cell)], float(reward)
            self.running[i] = not ended and self.steps < self.horizon
        return rewards

    def understands(self, word: str) -> bool:
        return word in ACTIONS

    def _draw(self, player: int) -> str:
        width = len(self.board[0])
        cells = ["P" if i == player else cell for i, cell in enumerate("".join(self.board))]
        return "\n".join(" ".join(cells[i : i + width]) for i in range(0, len(cells), width))
