"""Preference objectives that the tests go through, by name, and batches of them."""

import dataclasses
from types import SimpleNamespace

import torch

from gigpo_fast.pairwise import (
    AlphaDivergence,
    ForwardKL,
    Hinge,
    JensenShannon,
    LabelKL,
    Linear,
    Logistic,
    LogisticSigmoidMix,
    LogOdds,
    NegativeLogLikelihood,
    PairClip,
    PairwiseObjective,
    ReverseKL,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
)

FREE = Score(reference=0.0)
OBJECTIVES = {
    "DPO": PairwiseObjective(),
    "smoothed": PairwiseObjective(Logistic(0.2), beta=0.5),
    "robust": PairwiseObjective(Robust(0.2), beta=0.5),
    "IPO": PairwiseObjective(Square(5.0), Score(per_token=True), 1.0),
    "INPO": PairwiseObjective(Square(1.5), Score(1 / 3, 2 / 3), 1.0),
    "EGPO": PairwiseObjective(Square(scale=0.5), beta=2.0),
    "hinge": PairwiseObjective(Hinge(0.5), beta=0.7),
    "sigmoid": PairwiseObjective(Sigmoid(), beta=0.4),
    "linear": PairwiseObjective(Linear(), FREE, 0.3),
    "soft label": PairwiseObjective(SoftLabel(), Score(0.0, 1.0), 0.3),
    "label KL": PairwiseObjective(LabelKL(0.01), beta=0.3),
    "mix": PairwiseObjective(LogisticSigmoidMix(0.7), beta=0.3),
    "pair clip": PairwiseObjective(PairClip(0.3), beta=1.0),
    "SimPO": PairwiseObjective(Logistic(), Score(0.0, per_token=True), 2.5, margin=0.5),
    "CPL": PairwiseObjective(Logistic(), FREE, 0.2, rejected=0.5),
    "CPL cloning": PairwiseObjective(Logistic(), FREE, 0.2, nll=NegativeLogLikelihood(0.3, per_token=True, both=True)),
    "RPO": PairwiseObjective(nll=NegativeLogLikelihood(0.02)),
    "RPO per token": PairwiseObjective(nll=NegativeLogLikelihood(0.2, per_token=True)),
    "APO-down": PairwiseObjective(Sigmoid(), beta=0.4, chosen_down=Sigmoid()),
    "forward KL": PairwiseObjective(Logistic(), Score(transform=ForwardKL()), 0.3),
    "reverse KL": PairwiseObjective(Logistic(), Score(transform=ReverseKL()), 0.3, rejected=0.5),
    "Jensen-Shannon": PairwiseObjective(Logistic(), Score(transform=JensenShannon()), 0.3),
    "AlphaPO": PairwiseObjective(Logistic(), Score(0.0, per_token=True, transform=AlphaDivergence(0.25)), 2.0),
    "ORPO": PairwiseObjective(Logistic(), Score(0.0, per_token=True, transform=LogOdds()), 1.0, nll=NegativeLogLikelihood(per_token=True)),
}
SINGLE = ("DPO", "robust", "IPO", "INPO", "EGPO", "sigmoid", "linear", "soft label", "SimPO", "RPO", "RPO per token", "ORPO")


def responses(count: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Sequence log-probs with anchors, targets and weights; response 3 is empty; some stand in several pairs, one pair is left out."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(count, generator=g, dtype=torch.float64)  # noqa: E731
    lengths = torch.randint(2, 9, (count,), generator=g).double()
    log_probs = -lengths * (0.4 + torch.rand(count, generator=g, dtype=torch.float64))
    lengths[3] = 0.0
    b = SimpleNamespace(pairs=torch.tensor([(0, 1), (2, 0), (4, 5), (6, 2), (1, 5), (5, 6)]), lengths=lengths, desirable=normal() > 0)
    b.log_probs, b.ref_log_probs, b.previous_log_probs = (
        torch.where(lengths > 0, value, 0).to(dtype) for value in (log_probs, log_probs + normal(), log_probs + normal())
    )
    b.targets, b.weights = torch.rand(count, generator=g, dtype=torch.float64), 0.5 + torch.rand(count, generator=g, dtype=torch.float64)
    b.weights[4] = 0.0
    b.dtype = dtype
    return b


def given(b: SimpleNamespace, objective: PairwiseObjective, count: int) -> dict[str, torch.Tensor]:
    """The tensors that an objective reads, and weights."""
    names = {"ref_log_probs": objective.needs_reference, "previous_log_probs": objective.needs_previous, "lengths": objective.needs_lengths}
    found = {name: getattr(b, name) for name, needed in names.items() if needed}
    return found | ({"targets": b.targets[:count]} if objective.needs_targets else {}) | {"weights": b.weights[:count]}


def written(objective: PairwiseObjective) -> dict:
    """The objective as the reference takes it."""
    spec = lambda block: (type(block).__name__, dataclasses.asdict(block))  # noqa: E731
    score = {name: getattr(objective.score, name) for name in ("reference", "previous", "per_token")}
    score["transform"] = None if objective.score.transform is None else spec(objective.score.transform)
    nll = None if objective.nll is None else dataclasses.asdict(objective.nll)
    found = {"link": spec(objective.link), "score": score, "beta": objective.beta, "margin": objective.margin, "nll": nll}
    return found if objective.chosen_down is None else found | {"chosen_down": spec(objective.chosen_down)}
