"""A preference loss as a composition: link, score and a few coefficients."""

import dataclasses

from ..settings import Settings, number
from .links import Link, Logistic
from .score import Score


@dataclasses.dataclass(frozen=True)
class NegativeLogLikelihood(Settings):
    """+ coefficient * NLL of the chosen response: its tokens' sum or, with `per_token`, their mean; with `both` the mean over the pair.

    RPO of the paper adds eta beta times the sum, RPO of the authors' OpenRLHF branch eta times the token mean (arXiv 2405.16436).
    """

    coefficient: float = 1.0
    per_token: bool = False
    both: bool = False


@dataclasses.dataclass(frozen=True)
class PairwiseObjective(Settings):
    """L = link(beta (score_chosen - rejected * score_rejected) - margin) + nll + chosen_down(-beta score_chosen).

    `rejected` is the factor of the rejected response's score: 1 compares the two (DPO), below 1 is CPL's conservative bias lambda,
    0 leaves the chosen response alone. `margin` is SimPO's gamma. `chosen_down`, a link that reads no targets, pulls the chosen response
    down as well (APO-down).
    """

    link: Link = Logistic()
    score: Score = Score()
    beta: float = number(0.1, above=0.0)
    rejected: float = number(1.0, low=0.0, high=1.0)
    margin: float = 0.0
    nll: NegativeLogLikelihood | None = None
    chosen_down: Link | None = None

    def __post_init__(self) -> None:
        for name, kind in {"link": Link, "score": Score, "nll": NegativeLogLikelihood, "chosen_down": Link}.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name in ("nll", "chosen_down") and value is None):
                raise TypeError(
                    f"PairwiseObjective: {name} must be a {kind.__name__} block, got {value!r}; see gigpo_fast.pairwise for those there are"
                )
        if self.chosen_down is not None and self.chosen_down.reads_targets:
            raise ValueError(
                f"PairwiseObjective: chosen_down must be a Link that reads no targets, got {self.chosen_down!r}; the targets are the pair's"
            )

    @property
    def needs_reference(self) -> bool:
        return self.score.reference != 0

    @property
    def needs_previous(self) -> bool:
        return self.score.previous != 0

    @property
    def needs_lengths(self) -> bool:
        return self.score.per_token or (self.nll is not None and self.nll.per_token)

    @property
    def needs_targets(self) -> bool:
        return self.link.reads_targets
