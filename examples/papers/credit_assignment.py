"""Whose step was it? GRPO, GiGPO (arXiv 2505.10978) and HGPO (arXiv 2602.22817) against the exact advantage.

    python examples/papers/credit_assignment.py

A 4 x 4 room: fetch the key from one corner, then open the door in another, within 30 steps; reward 1, else 0. The policy is a table
over (cell, key in hand), so that its advantage function can be computed. An observation, though, shows the cell alone: steps taken from one
cell with and without the key look alike. GiGPO compares them; HGPO trusts the comparison more, the longer the history they share.

1. Correlation of each credit with the exact advantage over the steps of a random policy, for several group sizes.
2. Success of policies trained with each credit: 32 episodes a batch in groups of 8, the same Adam, exact success probability.
"""

from typing import NamedTuple

import torch
from output import COLOURS, band, figure, parse, write
from torch import Tensor

from gigpo_fast.advantage import gigpo_advantages, hgpo_advantages
from gigpo_fast.loss import gigpo_loss

WIDTH, HORIZON, GAMMA = 4, 30, 0.95
START, KEY, DOOR = 0, 3, 12  # cells, row by row
CELLS, MOVES = WIDTH * WIDTH, ((-1, 0), (1, 0), (0, -1), (0, 1))
END = 2 * CELLS  # the absorbing state; state = cell + CELLS * key in hand
SIZES = (4, 8, 16, 32, 64)


def room() -> tuple[Tensor, Tensor]:
    """(END + 1, 4) the next state and the reward of each move."""
    following = torch.full((END + 1, len(MOVES)), END)
    for state in range(END):
        key, (row, column) = state >= CELLS, divmod(state % CELLS, WIDTH)
        for move, (down, right) in enumerate(MOVES):
            cell = min(max(row + down, 0), WIDTH - 1) * WIDTH + min(max(column + right, 0), WIDTH - 1)
            following[state, move] = END if key and cell == DOOR else cell + CELLS * (key or cell == KEY)
    rewards = (following == END).float()
    rewards[END] = 0.0
    return following, rewards


FOLLOWING, REWARDS = room()


class Steps(NamedTuple):
    """A batch of episodes, one row a step."""

    state: Tensor
    move: Tensor
    reward: Tensor
    time: Tensor
    trajectory: Tensor


def play(policy: Tensor, episodes: int, generator: torch.Generator) -> Steps:
    """Episodes of a policy, (END + 1, 4) probabilities."""
    state, states, moves = torch.full((episodes,), START), [], []
    for _ in range(HORIZON):
        states.append(state)
        moves.append(torch.multinomial(policy[state], 1, generator=generator)[:, 0])
        state = FOLLOWING[state, moves[-1]]
    state, move = torch.stack(states), torch.stack(moves)
    time, trajectory = (state != END).nonzero(as_tuple=True)
    state, move = state[time, trajectory], move[time, trajectory]
    return Steps(state, move, REWARDS[state, move], time, trajectory)


def action_values(policy: Tensor, gamma: float) -> Tensor:
    """(HORIZON, END + 1, 4) expected discounted reward of each move at each time, exact; the policy's value is its mean over moves."""
    values, after = [], torch.zeros(END + 1)
    for _ in range(HORIZON):
        values.append(REWARDS + gamma * after[FOLLOWING])
        after = (policy * values[-1]).sum(-1)
    return torch.stack(values[::-1])


def success(policy: Tensor) -> float:
    """The probability that an episode ends at the door."""
    return (policy * action_values(policy, 1.0)[0])[START].sum().item()


def credits(steps: Steps, group_size: int) -> dict[str, Tensor]:
    """Each method's advantage of every step, centred and not divided by a deviation."""
    task, cell = steps.trajectory // group_size, steps.state % CELLS
    by_cell = gigpo_advantages(steps.reward, steps.trajectory, task, cell, gamma=GAMMA, step=steps.time)
    by_state = gigpo_advantages(steps.reward, steps.trajectory, task, steps.state, gamma=GAMMA, step=steps.time)
    total = torch.zeros(int(steps.trajectory.max()) + 1).index_add_(0, steps.trajectory, steps.reward)[steps.trajectory]
    nested = hgpo_advantages(steps.reward, steps.trajectory, task, cell, gamma=GAMMA, step=steps.time, episode_scores=total)
    return {
        "GRPO": by_cell.episode,
        "GiGPO, sees the cell": by_cell.advantages,
        "HGPO, sees the cell": nested.advantages,
        "GiGPO, sees cell and key": by_state.advantages,
    }


def agreement(seed: int, episodes: int) -> dict[str, list[float]]:
    """Per credit, its correlation with the exact advantage under the random policy, for each group size."""
    policy = torch.full((END + 1, len(MOVES)), 1 / len(MOVES))
    steps = play(policy, episodes, torch.Generator().manual_seed(seed))
    values = action_values(policy, GAMMA)
    exact = (values - (policy * values).sum(-1, keepdim=True))[steps.time, steps.state, steps.move]
    found = [credits(steps, size) for size in SIZES]
    return {name: [torch.corrcoef(torch.stack([exact, own[name]]))[0, 1].item() for own in found] for name in found[0]}


def train(name: str, seed: int, updates: int) -> list[float]:
    """The success probability before each update."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(END + 1, len(MOVES), requires_grad=True)
    optimizer, curve = torch.optim.Adam([logits], lr=0.05), []
    for _ in range(updates):
        policy = logits.detach().softmax(-1)
        curve.append(success(policy))
        steps = play(policy, 32, generator)
        log_probs = logits.log_softmax(-1)[steps.state, steps.move][:, None]  # one token a step
        advantages = credits(steps, 8)[name][:, None]
        optimizer.zero_grad()
        gigpo_loss(log_probs, advantages, torch.ones_like(log_probs, dtype=torch.bool)).loss.backward()
        optimizer.step()
    return curve


def main(arguments: list[str] | None = None) -> dict:
    from tqdm import tqdm

    options = parse(__doc__, seeds=5, arguments=arguments)
    torch.set_num_threads(1)
    seeds, updates = range(options.seeds), 15 if options.quick else 60
    agreements = [agreement(seed, 512 if options.quick else 2048) for seed in tqdm(seeds, desc="credit")]
    names = list(agreements[0])
    tasks = tqdm([(name, seed) for name in names for seed in seeds], desc="training")
    curves = {(name, seed): train(name, seed, updates) for name, seed in tasks}

    rows = {}
    with figure(options.out, "credit_assignment", f"Fetch the key, open the door, {options.seeds} seeds", 2) as (left, right):
        for name, colour in zip(names, COLOURS, strict=False):
            own, trained = [found[name] for found in agreements], [curves[name, seed] for seed in seeds]
            band(left, SIZES, own, label=name, colour=colour)
            band(right, range(updates), trained, label=name, colour=colour)
            rows[name] = {f"corr, groups of {size}": [found[SIZES.index(size)] for found in own] for size in (8, 64)}
            rows[name]["success, mean of the training"] = [sum(curve) / updates for curve in trained]
            rows[name]["success, last"] = [curve[-1] for curve in trained]
        left.set(title="correlation with the exact advantage", xlabel="episodes in a group", xticks=SIZES)
        right.set(title="success probability", xlabel="batch of 32 episodes")
    write(options.out, "credit_assignment", rows)
    return rows


if __name__ == "__main__":
    main()
