"""Why entropy collapses, and what holds it up (The Entropy Mechanism of RL for Reasoning Language Models, arXiv 2505.22617).

    python examples/papers/entropy_mechanism.py

64 prompts, answers of one token out of 32, three of which are right. The policy is a linear map from a prompt's 32 random features
to logits, so that prompts share parameters; success and entropy are computed exactly. Every batch holds 8 answers a prompt, their
advantages are GRPO's, and Adam takes 8 steps on it, a mini-batch each. The losses are the package's recipes, with their paper's
settings but for the fraction of the tokens: the paper's 2e-4 of a batch of millions would be less than one of these 64.

Two controls: a fifth of the tokens dropped blindly, and a smaller learning rate, which needs about as many batches as Clip-Cov.
"""

import torch
from output import COLOURS, band, figure, parse, write

from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import Clip, PolicyObjective, RandomFraction, Weighted
from gigpo_fast.recipes import recipe

PROMPTS, FEATURES, VOCABULARY, RIGHT, GROUP, MINI_BATCHES = 64, 32, 32, 3, 8, 8
OBJECTIVES = {
    "clip (GRPO)": PolicyObjective(),
    "clip, slower": PolicyObjective(),
    "drop any 20%": PolicyObjective(surrogate=Weighted(Clip(1.0, 1.0), RandomFraction(0.8))),  # Clip-Cov without its choice
    **{f"Clip-Cov, {share:.0%}": recipe("clip_cov", fraction=share).objective for share in (0.02, 0.2)},
    **{f"KL-Cov, {share:.0%}": recipe("kl_cov", fraction=share).objective for share in (0.02, 0.2)},
}
LEARNING_RATES = dict.fromkeys(OBJECTIVES, 0.02) | {"clip, slower": 0.012}
credit = recipe("kl_cov").advantages  # GRPO's: standardised in the group of a prompt's answers


def run(name: str, seed: int, updates: int) -> dict[str, list[float]]:
    """Entropy and success before each update, and the mean covariance of log-prob and advantage in its batch."""
    objective, generator = OBJECTIVES[name], torch.Generator().manual_seed(seed)
    features = torch.randn(PROMPTS, FEATURES, generator=generator) / FEATURES**0.5
    right = torch.zeros(PROMPTS, VOCABULARY).scatter_(1, torch.rand(PROMPTS, VOCABULARY, generator=generator).topk(RIGHT).indices, 1.0)
    weight = torch.zeros(FEATURES, VOCABULARY, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATES[name])
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    history: dict[str, list[float]] = {"entropy": [], "success": [], "covariance": []}
    for update in range(updates):
        with torch.no_grad():
            policy = (features @ weight).log_softmax(-1)
            answers = torch.multinomial(policy.exp(), GROUP, replacement=True, generator=generator).flatten()
            old = policy[prompt, answers]
            advantages = credit(right[prompt, answers], prompt)
            history["entropy"].append(-(policy.exp() * policy).sum(-1).mean().item())
            history["success"].append((policy.exp() * right).sum(-1).mean().item())
            history["covariance"].append(((advantages - advantages.mean()) * (old - old.mean())).mean().item())
        for rows in torch.randperm(len(prompt), generator=generator).chunk(MINI_BATCHES):
            optimizer.zero_grad()
            log_probs = (features[prompt[rows]] @ weight).log_softmax(-1).gather(1, answers[rows, None])[:, 0]
            extras = {"token_keys": update * len(prompt) + rows} if "token_keys" in objective.reads else None  # what a seeded draw goes by
            given = {"old_log_probs": old[rows], "extras": extras, "objective": objective}
            policy_loss(log_probs, advantages[rows], torch.ones_like(rows, dtype=torch.bool), **given).loss.backward()
            optimizer.step()
    return history


def figures(history: dict[str, list[float]]) -> dict[str, float]:
    """A run in numbers: entropy on the way and at the end, success, and how well the covariance tells the entropy that goes."""
    entropy, success = torch.tensor(history["entropy"]), torch.tensor(history["success"])
    half = int((success < 0.5).sum())  # the batch at which half of the answers are right; success rises all the way to there
    lost = entropy[:-1] - entropy[1:]
    return {
        "batches to success .5": half,
        "entropy there": entropy[min(half, len(entropy) - 1)].item(),
        "entropy at the end": entropy[-1].item(),
        "success at the end": success[-1].item(),
        "corr(cov, entropy lost)": torch.corrcoef(torch.stack([torch.tensor(history["covariance"])[:-1], lost]))[0, 1].item(),
    }


def main(arguments: list[str] | None = None) -> dict:
    from tqdm import tqdm

    options = parse(__doc__, seeds=5, arguments=arguments)
    torch.set_num_threads(1)
    updates = 60 if options.quick else 120
    runs: dict[str, list[dict]] = {name: [] for name in OBJECTIVES}
    with tqdm(total=options.seeds * len(OBJECTIVES), desc="runs") as progress:
        for seed in range(options.seeds):
            for name in OBJECTIVES:
                runs[name].append(run(name, seed, updates))
                progress.update()

    found = {name: [figures(history) for history in histories] for name, histories in runs.items()}
    rows = {name: {column: [one[column] for one in own] for column in own[0]} for name, own in found.items()}
    with figure(options.out, "entropy_mechanism", f"A softmax policy trained with GRPO's advantages, {options.seeds} seeds", 3) as panels:
        for (name, histories), colour in zip(runs.items(), COLOURS, strict=False):
            for axes, quantity in zip(panels, ("entropy", "success"), strict=False):
                band(axes, range(updates), [history[quantity] for history in histories], label=name, colour=colour)
                axes.set(title=f"{quantity}{' (nats)' if quantity == 'entropy' else ''}", xlabel="batch")
            for history in histories:
                panels[2].plot(history["success"], history["entropy"], color=colour, linewidth=0.8)
        panels[2].set(title="entropy against success", xlabel="success")
    write(options.out, "entropy_mechanism", rows)
    return rows


if __name__ == "__main__":
    main()
