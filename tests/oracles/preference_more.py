"""Two files beside the preference trainers' own: OpenRLHF's DPOLoss among its policy losses, and Text2Grad's token rewards and loss."""

import torch

from gigpo_fast import reward
from gigpo_fast.advantage import gae_advantages, whiten
from gigpo_fast.objective import K1, K2, AbsoluteKL
from gigpo_fast.pairwise import Logistic, PairwiseObjective, Square, halves, pairwise_loss
from gigpo_fast.recipes import recipe

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .policy import call
from .tensors import Case

_ESTIMATORS = {"kl": K1(), "abs": AbsoluteKL(), "mse": K2()}


def openrlhf_dpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config.get("loss") != "DPOLoss":
        raise Unsupported("no preference loss")
    log_probs = torch.cat([inputs["chosen_logps"], inputs["rejected_logps"]]).requires_grad_()
    ref = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
    link, beta = (Square(1 / (2 * config["beta"])), 1.0) if config["ipo"] else (Logistic(config["label_smoothing"]), config["beta"])
    out = pairwise_loss(log_probs, halves(log_probs.shape[0]), ref_log_probs=ref, objective=PairwiseObjective(link, beta=beta))
    out.loss.backward()
    rewards = (config["beta"] * (log_probs.detach() - ref)).view(2, -1)
    gradients = log_probs.grad.view(2, -1)
    return Answer(
        {
            "loss": out.loss,
            "chosen_rewards": rewards[0],
            "rejected_rewards": rewards[1],
            "grad_chosen_logps": gradients[0],
            "grad_rejected_logps": gradients[1],
        }
    )


def text2grad(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] == "loss":
        objective = recipe("text2grad", clip=config["cliprange"], threshold=config["ratio_threshold"]).objective
        found = call(inputs["log_probs"], inputs["advantages"], inputs["mask"] > 0, objective, old_log_probs=inputs["old_log_probs"])
        return Answer({"policy_loss": found.loss, "grad_log_probs": found.gradient})
    if config["function"] != "compute_rewards + compute_advantages":
        raise Unsupported("text processing")
    mask, log_probs, ref = inputs["mask"] > 0, inputs["log_probs"], inputs["ref_log_probs"]
    if config["kl_penalty"] == "full":  # over the whole vocabulary: the caller's
        penalty = -config["kl_coef"] * (log_probs.exp() * (log_probs - ref)).sum(-1)
    else:
        penalty = reward.kl_rewards(log_probs, ref, mask, coefficient=config["kl_coef"], estimator=_ESTIMATORS[config["kl_penalty"]])
    scores = torch.stack([row[1:] for row in inputs["scores"]])  # the first is dropped
    rewards = torch.where(mask, penalty + scores, 0.0)
    used = whiten(rewards, mask, keep_mean=True) if config["whiten_rewards"] else rewards
    found = gae_advantages(used, inputs["values"], mask, gamma=config["gamma"], lam=config["lam"])
    outputs = {"rewards": rewards, "non_score_rewards": penalty, "kl": -penalty / config["kl_coef"]}
    outputs |= {"advantages": whiten(found.advantages, mask), "returns": found.returns}
    return Answer(outputs, dict.fromkeys(outputs, beyond(mask)))


_CRITIC = "the loss of a critic, and what is reported of it"
_TEXT = "finding the words of a critique in a response, and their weights: text processing"
TEXT2GRAD = Adapter(
    text2grad,
    dict.fromkeys(("rewards", "non_score_rewards", "kl", "advantages", "returns"), REASON),
    excluded={
        **{f"assign_token_rewards/{of}/{case}": _TEXT for of in ("slf5k", "kodcode", "ultrafeedback") for case in range(8)},
        **{f"length_weight_penalty/alpha={alpha}": _TEXT for alpha in (0.05, 0.2, 1.0)},
    },
    outside={
        "value_loss_weighted": _CRITIC,
        "loss": _CRITIC,
        "grad_new_values": _CRITIC,
        "stats.*": "the authors' own report beside the loss",
    },
)
