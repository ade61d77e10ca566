"""verl's KL estimators (core_algos.kl_penalty): the value of each token from the estimator block, the gradient through the loss."""

import torch

from gigpo_fast import loss
from gigpo_fast.integrations.verl_objective import estimator_of
from gigpo_fast.objective import KLPenalty, PolicyObjective, TokenSum

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case


def answer(case: Case) -> Answer:
    try:
        estimator = estimator_of("verl_kl", case.config["kl"])
    except ValueError as error:
        raise Unsupported(str(error)) from error
    log_probs = case.inputs["log_probs"].clone().requires_grad_()
    reference = case.inputs["ref_log_probs"]
    # Without advantages the penalty is all that is left of the loss.
    result = loss.policy_loss(
        log_probs,
        torch.zeros_like(log_probs),
        torch.ones_like(log_probs, dtype=torch.bool),
        ref_log_probs=reference,
        objective=PolicyObjective(divergence=KLPenalty(1.0, estimator), aggregation=TokenSum()),
    )
    result.loss.backward()
    return Answer({"kl": estimator.value(log_probs.detach(), reference), "grad_log_probs": log_probs.grad})


ADAPTER = Adapter(answer)
