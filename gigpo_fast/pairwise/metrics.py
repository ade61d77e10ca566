"""What a preference loss reports: one packed vector with static names, so that micro-batches and ranks merge exactly."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics import Layout

PAIRS = Layout(
    sums=("loss_sum", "n_pairs"),
    means=("reward_chosen", "reward_rejected", "reward_margin", "accuracy", "log_prob_chosen", "log_prob_rejected"),
    maxima=("denominator",),
)
NAMES, SIZE = PAIRS.names, PAIRS.size


class PairwiseOutput(NamedTuple):
    """A loss to call `.backward()` on, the loss of each comparison, and the metrics as one packed vector.

    Metrics by name: loss_sum (of the divided losses), n_pairs, and means over the comparisons of weight other than 0: reward_chosen and
    reward_rejected (beta times the score), their difference reward_margin, accuracy (how often it is > 0), log_prob_chosen,
    log_prob_rejected; and the denominator.
    """

    loss: Tensor  # 0-dim, float32 (float64 for float64 inputs)
    losses: Tensor  # (P,) before weights and denominator, detached; 0 where the weight is 0
    metrics: Tensor  # (pairwise.metrics.SIZE,) float32, detached

    def metrics_as_floats(self) -> dict[str, float]:
        """The metrics by name as Python floats; the only place that waits for the device. A mean over nothing is absent."""
        return PAIRS.as_floats(self.metrics)

    @staticmethod
    def merge(outputs: "list[PairwiseOutput]") -> "PairwiseOutput":
        """Merge micro-batches or ranks that were given one common denominator: losses add up, metrics merge exactly."""
        if not outputs:
            raise ValueError(
                "PairwiseOutput.merge: outputs must hold at least one PairwiseOutput, got none; call it with your micro-batches' results"
            )
        if isinstance(outputs, PairwiseOutput) or not all(isinstance(output, PairwiseOutput) for output in outputs):
            fix = "put micro-batches' results in a list, and make one of gathered tensors with PairwiseOutput(...)"
            got = "a single one" if isinstance(outputs, PairwiseOutput) else "something else in it"
            raise TypeError(f"PairwiseOutput.merge: outputs must be a list of PairwiseOutput, got {got}; {fix}")
        return PairwiseOutput(
            torch.stack([output.loss for output in outputs]).sum(),
            torch.cat([output.losses for output in outputs]),
            PAIRS.merge([output.metrics for output in outputs]),
        )


def pack(loss: Tensor, rewards: Tensor, log_probs: Tensor, counted: Tensor, denominator: Tensor) -> Tensor:
    """(SIZE,) float32 of (P, 2) chosen and rejected; what is not `counted` is in no mean, and a margin needs both."""
    with torch.no_grad():
        both = counted.all(1)
        margin = rewards[:, 0] - rewards[:, 1]
        entries = {
            "reward_chosen": (rewards[:, 0], counted[:, 0]),
            "reward_rejected": (rewards[:, 1], counted[:, 1]),
            "reward_margin": (margin, both),
            "accuracy": ((margin > 0).to(rewards.dtype), both),
            "log_prob_chosen": (log_probs[:, 0], counted[:, 0]),
            "log_prob_rejected": (log_probs[:, 1], counted[:, 1]),
        }
        means = {name: (torch.where(mask, value, 0).sum(), mask.sum()) for name, (value, mask) in entries.items()}
        return PAIRS.pack({"loss_sum": loss, "n_pairs": counted.any(1).sum()}, means, {"denominator": denominator}, loss)
