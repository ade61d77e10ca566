"""KL estimators on recorded log-probs: values from the estimator block, gradients through it."""

import torch
from torch import Tensor

from gigpo_fast.objective.divergence import Estimator

from .adapter import Answer
from .tensors import Case


def value_and_gradient(case: Case, estimator: Estimator) -> Answer:
    """The estimate, and the gradient of its sum."""
    log_probs = case.inputs["log_probs"].clone().requires_grad_()
    value = estimator.value(log_probs, case.inputs["ref_log_probs"])
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    return Answer({"kl": value.detach(), "grad_log_probs_of_sum": gradient})


class Clamped(Estimator):
    """An estimator kept within +-limit, gradient included."""

    def __init__(self, estimator: Estimator, limit: float = 10.0) -> None:
        self.estimator, self.limit = estimator, limit

    def value(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        return self.estimator.value(log_probs, ref_log_probs).clamp(-self.limit, self.limit)
