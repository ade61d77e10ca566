"""verl's KL estimators (core_algos.kl_penalty): the value of each token from the estimator block, the gradient through the loss."""

import torch

from gigpo_fast import loss
from gigpo_fast.objective import K1, K2, K3, AbsoluteKL, KLPenalty, PolicyObjective, StraightThrough, TokenSum

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case

_K3 = K3(input_clip=20.0, output_clip=10.0)
_ESTIMATORS = {
    "k1": K1(),
    "kl": K1(),
    "abs": AbsoluteKL(),
    "k2": K2(),
    "mse": K2(),
    "k3": _K3,
    "low_var_kl": _K3,
    "k1+": StraightThrough(K1()),
    "kl+": StraightThrough(K1()),
    "abs+": StraightThrough(AbsoluteKL()),
    "k2+": StraightThrough(K2()),
    "mse+": StraightThrough(K2()),
    "k3+": StraightThrough(_K3),
    "low_var_kl+": StraightThrough(_K3),
}


def answer(case: Case) -> Answer:
    estimator = _ESTIMATORS.get(case.config["kl"])
    if estimator is None:
        raise Unsupported(f"no estimator for {case.config['kl']!r}")
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
