"""Named results: every public function returns one of these, always of the same shape."""

from typing import NamedTuple

import torch
from torch import Tensor


class StateGroups(NamedTuple):
    """What `anchor.group_states` found. Groups are numbered by first occurrence."""

    ids: Tensor  # (S,) int64, dense group number of each state, -1 where the row is not valid
    first_row: Tensor  # (G,) int64, the first row of each group
    counts: Tensor  # (G,) int64, rows of each group


class GiGPOAdvantages(NamedTuple):
    """The two levels of GiGPO and their sum; one value a step."""

    advantages: Tensor  # (S,) episode + step_weight * step
    episode: Tensor  # (S,) from the whole trajectory's return, within the task's group
    step: Tensor  # (S,) from the discounted return to go, within the anchor state's group
    step_returns: Tensor  # (S,) the discounted returns that `step` compares


class TokenLogProbs(NamedTuple):
    """What the head says about the sampled tokens; both differentiable."""

    log_probs: Tensor  # float32 (float64 for float64 inputs), nats
    entropy: Tensor  # the same shape and dtype, nats


class TokenStatistics(NamedTuple):
    """What the head says about the sampled tokens and their distributions; without gradient."""

    log_probs: Tensor  # float32 (float64 for float64 inputs), nats
    entropy: Tensor  # the same shape and dtype, nats
    sum_squared_probs: Tensor  # the same shape and dtype: the probability that two draws are the same token


class LossOutput(NamedTuple):
    """A loss to call `.backward()` on, and its metrics as one packed vector."""

    loss: Tensor  # 0-dim, float32 (float64 for float64 inputs)
    metrics: Tensor  # (gigpo_fast.metrics.SIZE,) float32, detached

    def metrics_as_floats(self) -> dict[str, float]:
        """The metrics by name as Python floats, without those that nobody measured; the only place that waits for the device."""
        from .metrics import as_floats

        return as_floats(self.metrics)

    @staticmethod
    def merge(outputs: "list[LossOutput]") -> "LossOutput":
        """Merge micro-batches or ranks that were given one common denominator: losses add up, metrics merge exactly."""
        from .metrics import merge

        if not outputs:
            raise ValueError(
                "LossOutput.merge: outputs must hold at least one LossOutput, got none; call it with the results of your micro-batches"
            )
        if isinstance(outputs, LossOutput) or not all(isinstance(output, LossOutput) for output in outputs):
            fix = "put micro-batches' results in a list, and make one of gathered tensors with LossOutput(...)"
            got = "a single one" if isinstance(outputs, LossOutput) else "something else in it"
            raise TypeError(f"LossOutput.merge: outputs must be a list of LossOutput, got {got}; {fix}")
        return LossOutput(torch.stack([output.loss for output in outputs]).sum(), merge([output.metrics for output in outputs]))
