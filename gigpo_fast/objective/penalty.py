"""Penalties: a coefficient times an estimated divergence between the policy and an anchor policy, added to the loss."""

import dataclasses

import torch
from torch import Tensor

from ..settings import number
from .aggregation import Aggregation, TokenMean, TokenSum
from .batch import TokenBatch
from .block import Block, Scope, declare
from .divergence import K1, K3, Estimator, Reversed
from .ratio import Bound, Ratio
from .weighting import Weighting

# Whose log-probs an anchor's are, and the name in `extras` where they do not come by an argument of their own.
ANCHORS = {
    "ref": None,
    "old": None,
    "teacher": "teacher_log_probs",
    "previous": "previous_log_probs",
    "rollout": "rollout_log_probs",
}


class Penalty(Block):
    """A block that adds a divergence from an anchor policy; it may have an aggregation of its own."""

    anchor: str
    aggregation: Aggregation | None
    denominator: float | None

    def loss(self, batch: TokenBatch, log_ratio: Tensor, usable: TokenBatch) -> tuple[Tensor, Tensor]:
        """(n,) the penalty and (n,) the bare estimate. `usable` is the batch without infinite log-probs of the policy and the old one."""
        raise NotImplementedError

    def estimate(self, batch: TokenBatch, usable: TokenBatch) -> Tensor:
        """(n,) the estimator between the policy and its anchor."""
        if self.anchor == "ref":
            return self.estimator.value(batch.log_probs, batch.ref_log_probs)
        if self.anchor == "old":
            return self.estimator.value(usable.log_probs, usable.old())
        return self.estimator.value(batch.log_probs, batch.extras[ANCHORS[self.anchor]])

    def token_weights(self, batch: TokenBatch, main: Aggregation) -> Tensor:
        """(n,) weight of each token divided by the denominator, by this penalty's own aggregation.

        Without a denominator of its own it takes the call's if both count the same (tokens, or sequences), else what it counts here.
        """
        mask, dtype = batch.trained(), batch.advantages.dtype
        own = self.aggregation.weights(mask, batch.sequences, dtype)
        if self.denominator is not None:
            return own / self.denominator
        if self.aggregation.counts == main.counts:
            return batch.token_weights * own / main.weights(mask, batch.sequences, dtype)
        if isinstance(self.aggregation, TokenMean):  # of the call, not of a chunk
            return own / batch.sequences.lengths.sum().to(dtype).clamp(min=1)
        return own / self.aggregation.count(mask, batch.sequences).to(dtype).clamp(min=1)

    def _declare(self, name: str, *parts: Block | None, reads: tuple[str, ...] = (), **own) -> None:
        if self.anchor not in ANCHORS:
            raise ValueError(f"{name}: anchor must be one of {sorted(ANCHORS)}, got {self.anchor!r}; it names whose log-probs are compared")
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                f"{name}: estimator must be a divergence estimator such as K3(), got {self.estimator!r}; see gigpo_fast.objective"
            )
        if self.aggregation is not None and not isinstance(self.aggregation, Aggregation):
            raise TypeError(f"{name}: aggregation must be an Aggregation block or None, got {self.aggregation!r}; see gigpo_fast.objective")
        if self.denominator is not None and self.aggregation is None:
            raise ValueError(f"{name}: denominator must be None without an aggregation, got {self.denominator!r}; it would not be read")
        if self.aggregation is not None and self.denominator is None and self.aggregation.counts not in ("tokens", "sequences", "nothing"):
            raise ValueError(f"{name}: denominator must be given for the aggregation {self.aggregation!r}, got None")
        extra = ANCHORS[self.anchor]
        counts = self.aggregation is not None and self.denominator is None and not isinstance(self.aggregation, TokenSum)
        parts = [part for part in (*parts, self.aggregation) if part is not None]
        read = dict.fromkeys([*([] if extra is None else [extra]), *reads, *(read for part in parts for read in part.reads)])
        declare(
            self,
            parts,
            **{
                "zero_at_zero_advantage": False,
                "needs_reference": self.anchor == "ref",
                "needs_sequences": counts or any(part.needs_sequences for part in parts),
                "reads": tuple(read),
                **own,
            },
        )


@dataclasses.dataclass(frozen=True)
class KLPenalty(Penalty):
    """coefficient * k(log_prob, anchor's log_prob), added to every trained token.

    `anchor` names the other policy: "ref" (the argument ref_log_probs), "old", or "teacher", "previous", "rollout" (extras
    teacher_log_probs, previous_log_probs, rollout_log_probs). `importance_weighted` multiplies by the objective's ratio, gradient
    included (the unbiased estimate of DeepSeek-V3.2, arXiv 2512.02556), or by that of the Ratio block given: NoRatio() has the
    value 1 and adds the score-function gradient. `clip` bounds the estimate after that, with zero gradient outside: with a K1 of
    input_clip 20 a log_prob - ref of 30 at weight .48 counts as 20 x .48 = 9.6, inside a clip of 10; NeMo-RL's k1 has no input clamp,
    so there 30 x .48 is outside: K1() without one is that.
    With `own_mask` the penalty applies only where extras["kl_mask"] (bool) is True; tokens must be trained all the same.
    `weighting` is a factor of the penalty alone; `aggregation` and `denominator` are its own (see token_weights).
    """

    coefficient: float = number(low=0, fix="GiGPO uses 0.01")
    estimator: Estimator = K3()
    importance_weighted: bool | Ratio = False
    own_mask: bool = False
    anchor: str = "ref"
    weighting: Weighting | None = None
    aggregation: Aggregation | None = None
    denominator: float | None = number(None, above=0)
    clip: Bound = None

    def __post_init__(self) -> None:
        if not isinstance(self.importance_weighted, (bool, Ratio)):
            raise TypeError(f"KLPenalty: importance_weighted must be a bool or a Ratio block, got {self.importance_weighted!r}")
        if self.weighting is not None and not isinstance(self.weighting, Weighting):
            raise TypeError(f"KLPenalty: weighting must be a Weighting block or None, got {self.weighting!r}; see gigpo_fast.objective")
        if self.clip is not None:
            ends = self.clip if isinstance(self.clip, tuple) else (-self.clip, self.clip)
            if len(ends) != 2 or not ends[0] <= 0 < ends[1]:
                raise ValueError(
                    f"KLPenalty: clip must be a number > 0, a (low, high) pair around 0 or None, got {self.clip!r}; 10.0 is usual"
                )
            object.__setattr__(self, "clip", ends)
        ratio = self.importance_weighted if isinstance(self.importance_weighted, Ratio) else None
        own = {"known_on_policy": False} if self.importance_weighted or self.aggregation is not None else {}
        self._declare("KLPenalty", ratio, self.weighting, reads=("kl_mask",) if self.own_mask else (), **own)

    def loss(self, batch: TokenBatch, log_ratio: Tensor, usable: TokenBatch) -> tuple[Tensor, Tensor]:
        estimate = self.estimate(batch, usable)
        if self.own_mask:
            estimate = torch.where(batch.extras["kl_mask"], estimate, 0)
        value = estimate
        if self.importance_weighted:
            weight = log_ratio if self.importance_weighted is True else self.importance_weighted.log_ratio(usable)
            value = torch.exp(weight) * estimate
        if self.clip is not None:
            value = value.clamp(*self.clip)
        if self.weighting is not None:
            value = value * self.weighting.factor(usable).detach()
        return self.coefficient * value, estimate


@dataclasses.dataclass(frozen=True)
class HingeKL(Penalty):
    """sg(max(coefficient (mean k - threshold), 0)) k_t: the gradient of coefficient / 2 [mean k - threshold]_+^2 (DisCO, arXiv 2505.12366).

    A constraint rather than a penalty: nothing until the mean divergence passes `threshold`. The mean is over this call's
    trained tokens, or `mean` if given from outside. The default estimates KL(old || policy), as the paper has it.
    """

    coefficient: float = number(1000.0, low=0)
    threshold: float = 1e-4
    estimator: Estimator = Reversed(K1())
    anchor: str = "old"
    mean: float | None = None
    aggregation: Aggregation | None = TokenMean()
    denominator: float | None = number(None, above=0)

    def __post_init__(self) -> None:
        scope = Scope.BATCH if self.mean is None else Scope.TOKEN
        self._declare("HingeKL", scope=scope, known_on_policy=False)

    def loss(self, batch: TokenBatch, log_ratio: Tensor, usable: TokenBatch) -> tuple[Tensor, Tensor]:
        estimate = self.estimate(batch, usable)
        mean = batch.mean(estimate.detach()) if self.mean is None else torch.full_like(estimate[:1].detach().sum(), self.mean)
        return (self.coefficient * (mean - self.threshold)).clamp(min=0) * estimate, estimate
