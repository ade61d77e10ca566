"""Several reward models against over-optimisation (Reward Model Ensembles Help Mitigate Overoptimization, arXiv 2310.02743).

    python examples/papers/reward_ensembles.py

A response is a point x of a standard normal in 8 dimensions; what is truly good is a fixed random function of x, the gold reward.
Five reward models learn it from the same 256 comparisons, one in four of them labelled wrong, each from its own random start.
Best-of-n takes of n responses the one that a proxy ranks first: a model alone, or one of the paper's three combinations. The
proxy's favourite gets ever better by the proxy; the question is what becomes of the gold reward. The last three columns are taken at
the largest n.
"""

import math

import torch
from output import COLOURS, band, figure, parse, write
from torch import Tensor, nn

from gigpo_fast import reward
from gigpo_fast.pairwise import PairwiseObjective, Score, pairwise_loss

DIMENSIONS, MODELS, COMPARISONS, WRONG_LABELS = 8, 5, 256, 0.25
COMBINATIONS = {
    "mean": reward.ensemble_mean,
    "worst case (WCO)": reward.ensemble_worst,
    "uncertainty (UWO)": lambda scores: reward.ensemble_uncertainty(scores, coefficient=0.5, ddof=0),  # the authors' best-of-n
}
BRADLEY_TERRY = PairwiseObjective(beta=1.0, score=Score(reference=0.0))  # -log sigmoid(score of the chosen - of the rejected)


def network(width: int, generator: torch.Generator) -> nn.Sequential:
    """A random function: one hidden layer of tanh, variance about 1."""
    layers = nn.Sequential(nn.Linear(DIMENSIONS, width), nn.Tanh(), nn.Linear(width, 1), nn.Flatten(0))
    with torch.no_grad():
        for weight in (layers[0].weight, layers[2].weight):
            weight.normal_(generator=generator).div_(math.sqrt(weight.shape[1]))
        layers[0].bias.normal_(generator=generator)
        layers[2].bias.zero_()
    return layers


def train(model: nn.Module, responses: Tensor, pairs: Tensor, *, steps: int) -> nn.Module:
    """A reward model from comparisons; `pairs` (P, 2) number the chosen and the rejected response."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        pairwise_loss(model(responses), pairs, objective=BRADLEY_TERRY).loss.backward()
        optimizer.step()
    return model.eval()


def best_of(proxy: Tensor, gold: Tensor, n: int) -> tuple[float, float]:
    """The proxy's and the gold reward of the responses that the proxy ranks first in pools of n, means over the pools."""
    best = proxy.view(-1, n).argmax(1, keepdim=True)
    return proxy.view(-1, n).gather(1, best).mean().item(), gold.view(-1, n).gather(1, best).mean().item()


@torch.no_grad()
def standardised(model: nn.Module, responses: Tensor) -> Tensor:
    """Scores of mean 0 and deviation 1, as the paper's reward models are scaled: else a model's scale would be its vote."""
    scores = model(responses)
    return (scores - scores.mean()) / scores.std()


def run(seed: int, sizes: list[int], *, candidates: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Per proxy: its own and the gold reward of best-of-n, for each n."""
    generator = torch.Generator().manual_seed(seed)
    truth = network(32, generator)
    responses = torch.randn(2 * COMPARISONS, DIMENSIONS, generator=generator)
    with torch.no_grad():
        gold = truth(responses).view(-1, 2)
    first_is_better = (gold[:, 0] > gold[:, 1]) ^ (torch.rand(COMPARISONS, generator=generator) < WRONG_LABELS)
    pairs = torch.arange(2 * COMPARISONS).view(-1, 2)
    pairs = torch.where(first_is_better[:, None], pairs, pairs.flip(1))
    models = [train(network(64, generator), responses, pairs, steps=steps) for _ in range(MODELS)]

    pool = torch.randn(candidates, DIMENSIONS, generator=generator)
    gold, scores = standardised(truth, pool), torch.stack([standardised(model, pool) for model in models])
    curves = {name: [best_of(combine(scores), gold, n) for n in sizes] for name, combine in COMBINATIONS.items()}
    single = torch.tensor([[best_of(own, gold, n) for n in sizes] for own in scores]).mean(0)  # the mean of five tries with one model
    return {"one model": single.tolist(), **curves}


def main(arguments: list[str] | None = None) -> dict:
    from tqdm import tqdm

    options = parse(__doc__, seeds=20, arguments=arguments)
    torch.set_num_threads(1)
    candidates = 2**13 if options.quick else 2**17
    sizes = [2**i for i in range(0, 11 if options.quick else 14)]
    runs = [run(s, sizes, candidates=candidates, steps=150 if options.quick else 300) for s in tqdm(range(options.seeds), desc="seeds")]

    rows, names = {}, list(runs[0])
    with figure(options.out, "reward_ensembles", f"Best-of-n by reward models, {options.seeds} seeds", 2) as (left, right):
        for name, colour in zip(names, COLOURS, strict=False):
            proxy, gold = ([[point[which] for point in r[name]] for r in runs] for which in (0, 1))
            kl = [math.log(n) - (n - 1) / n for n in sizes]
            band(left, kl, gold, label=name, colour=colour)
            band(right, kl, proxy, label=name, colour=colour)
            rows[name] = {f"gold, n={n}": [curve[sizes.index(n)] for curve in gold] for n in (16, 256, sizes[-1])}
            rows[name]["gain over one model"] = [curve[-1] - r["one model"][-1][1] for curve, r in zip(gold, runs, strict=True)]
            rows[name]["fall from the best n"] = [max(curve) - curve[-1] for curve in gold]
            rows[name]["proxy - gold"] = [p[-1] - g[-1] for p, g in zip(proxy, gold, strict=True)]
        for axes, title in ((left, "gold reward"), (right, "the proxy's own reward")):
            axes.set(title=title, xlabel="KL from the sampling policy, log n - (n - 1)/n (nats)")
    write(options.out, "reward_ensembles", rows)
    return rows


if __name__ == "__main__":
    main()
