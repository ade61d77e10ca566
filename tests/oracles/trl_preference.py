"""TRL's preference trainers: DPO with all its losses, KTO, CPO (SimPO, AlphaPO), ORPO, Online DPO; Nash-MD, XPO and BCO of the experimental ones."""

import collections

import torch
from torch import Tensor

from gigpo_fast import reward
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import NegativeLogLikelihood as TokenNLL
from gigpo_fast.objective import NoRatio, PolicyObjective, Reinforce, SequenceMeanTokenSum
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
    PairwiseObjective,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
    halves,
    pairwise_loss,
    response_loss,
    sequence_log_probs,
    sorted_scores,
)
from gigpo_fast.recipes import recipe

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .policy import call
from .tensors import Case

_PAIRED = {
    "sigmoid": lambda config: Logistic(),  # label smoothing is for the robust and the sorted losses alone
    "sigmoid_norm": lambda config: Logistic(),
    "hinge": lambda config: Hinge(),
    "ipo": lambda config: Square(1 / (2 * config["beta"])),
    "exo_pair": lambda config: LabelKL(config["label_smoothing"]),
    "robust": lambda config: Robust(config["label_smoothing"]),
    "discopop": lambda config: LogisticSigmoidMix(config["discopop_tau"]),
    "aot": lambda config: Logistic(config["label_smoothing"]),
    "aot_unpaired": lambda config: Logistic(config["label_smoothing"]),
}
_TRANSFORMS = {
    "reverse_kl": lambda alpha: None,
    "forward_kl": lambda alpha: ForwardKL(),
    "js_divergence": lambda alpha: JensenShannon(),
    "alpha_divergence": lambda alpha: None if alpha == 1 else AlphaDivergence(1 - alpha),
}


def dpo(case: Case) -> Answer:
    answer = {"DPOTrainer": _dpo, "KTOTrainer": _kto, "CPOTrainer": _cpo, "ORPOTrainer": _orpo, "OnlineDPOTrainer": _online}
    return Answer(*answer[case.config["trainer"]](case))


def experimental(case: Case) -> Answer:
    return Answer(*{"NashMDTrainer": _nash_md, "XPOTrainer": _xpo, "BCOTrainer": _bco}[case.config["trainer"]](case))


def _dpo(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    log_probs, mask = inputs["log_probs"].clone().requires_grad_(), inputs["mask"]
    found = sequence_log_probs(log_probs, mask, token_weights=_surplus(mask, config["ld_alpha"]))
    ref = sequence_log_probs(inputs["ref_log_probs"], mask, token_weights=_surplus(mask, config["ld_alpha"])).log_probs
    weights = None
    if config["use_weighting"]:  # WPO: how probable the policy finds both responses, per token
        odds = sequence_log_probs(log_probs.detach() - inputs["log_sum_sq_probs"], mask)
        weights = (odds.log_probs / odds.lengths).view(2, -1).sum(0).exp()
    terms = [
        weight * _term(name, config, found, ref, weights, log_probs, mask)
        for name, weight in zip(config["loss_types"], config["loss_weights"])
    ]
    loss = torch.stack(terms).sum()
    loss.backward()
    plain = pairwise_loss(
        sequence_log_probs(log_probs.detach(), mask).log_probs if config["ld_alpha"] is None else found.log_probs.detach(),
        halves(mask.shape[0]),
        ref_log_probs=ref,
        objective=PairwiseObjective(beta=config["beta"]),
    ).metrics_as_floats()
    rounding = config["beta"] * 4 * torch.finfo(torch.float32).eps * found.log_probs.detach().abs().max()
    return {
        "loss": loss.detach(),
        "grad_log_probs": log_probs.grad,
        "rewards/chosen": plain["reward_chosen"],
        "rewards/rejected": plain["reward_rejected"],
        "rewards/accuracies": plain["accuracy"],
        "rewards/margins": plain["reward_margin"],
        "logps/chosen": plain["log_prob_chosen"],
        "logps/rejected": plain["log_prob_rejected"],
    }, {"rewards/chosen": rounding, "rewards/rejected": rounding, "rewards/margins": rounding}


def _surplus(mask: Tensor, alpha: float | None) -> Tensor | None:
    """LD-DPO: what one response is longer than the other counts alpha."""
    if alpha is None:
        return None
    lengths = mask.sum(1).view(2, -1)
    shorter = lengths.amin(0).repeat(2)
    return torch.where(mask.cumsum(1) <= shorter[:, None], 1.0, alpha)


def _term(name, config, found, ref, weights, log_probs, mask) -> Tensor:
    beta, pairs = config["beta"], halves(mask.shape[0])
    number, chosen = pairs.shape[0], torch.arange(mask.shape[0]) < mask.shape[0] // 2
    if name in _PAIRED:
        per_token = name in ("ipo", "sigmoid_norm")
        transform = _TRANSFORMS[config["f_divergence_type"]](config["f_alpha_divergence_coef"])
        objective = PairwiseObjective(
            _PAIRED[name](config), Score(per_token=per_token, transform=transform), 1.0 if name == "ipo" else beta
        )
        if name.startswith("aot"):
            ranked = sorted_scores(found.log_probs, ref, pairs, paired=name == "aot")
            free = PairwiseObjective(objective.link, Score(reference=0.0), beta)
            return pairwise_loss(ranked, pairs, objective=free).loss
        lengths = found.lengths if per_token else None
        return pairwise_loss(found.log_probs, pairs, ref_log_probs=ref, lengths=lengths, weights=weights, objective=objective).loss

    def responses(link, desirable=chosen, **keywords):
        objective = PairwiseObjective(link, beta=keywords.pop("scale", beta))
        return response_loss(found.log_probs, desirable, ref_log_probs=ref, objective=objective, denominator=float(number), **keywords).loss

    match name:
        case "sppo_hard":
            return responses(Square(0.5 / beta), scale=1.0)
        case "apo_zero":
            return responses(Sigmoid())
        case "apo_down":
            return pairwise_loss(found.log_probs, pairs, ref_log_probs=ref, objective=recipe("apo_down", beta=beta).objective).loss
        case "bco_pair":
            return responses(Logistic())
        case "nca_pair":
            return responses(SoftLabel(), targets=torch.where(chosen, 2 / 3, 1.0), weights=torch.where(chosen, 1.5, 0.5))
        case "sft":
            only = mask & chosen[:, None]
            return policy_loss(log_probs, torch.zeros_like(log_probs), only, objective=PolicyObjective(NoRatio(), TokenNLL())).loss
    raise Unsupported(f"no link for {name!r}")


def _kto(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    log_probs, mask, label = inputs["log_probs"].clone().requires_grad_(), inputs["mask"], inputs["label"]
    found, ref = sequence_log_probs(log_probs, mask).log_probs, sequence_log_probs(inputs["ref_log_probs"], mask).log_probs
    divergence = torch.zeros(())
    if inputs["kl_logps"] is not None:
        divergence = (inputs["kl_logps"] - inputs["ref_kl_logps"]).mean().clamp(min=0)
    weights = torch.where(label, config["desirable_weight"], config["undesirable_weight"])
    out = response_loss(
        found,
        label,
        ref_log_probs=ref,
        weights=weights,
        reference_point=config["beta"] * divergence,
        objective=PairwiseObjective(Sigmoid(), beta=config["beta"]),
    )
    out.loss.backward()
    named = collections.defaultdict(float, out.metrics_as_floats())  # TRL says 0 of a side without a response
    outputs = {"loss": out.loss.detach(), "grad_log_probs": log_probs.grad, "kl": divergence}
    for side in ("chosen", "rejected"):
        outputs |= {f"rewards/{side}": named[f"reward_{side}"], f"logps/{side}": named[f"log_prob_{side}"]}
    return outputs | {"rewards/margins": named["reward_chosen"] - named["reward_rejected"]}, {}


def _separate(inputs, *names) -> tuple[Tensor, Tensor]:
    """Leaves of chosen and rejected, and both as one tensor."""
    leaves = [inputs[name].clone().requires_grad_() for name in names]
    return leaves, torch.cat(leaves)


def _cpo(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    (chosen, rejected), both = _separate(inputs, "chosen_logps", "rejected_logps")
    beta = config["beta"]
    transform = AlphaDivergence(config["alpha"]) if config["alpha"] else None
    link, scale, margin = Logistic(config["label_smoothing"]), beta, 0.0
    match config["loss_type"]:
        case "hinge":
            link = Hinge()
        case "ipo":
            link, scale = Square(1 / (2 * beta)), 1.0
        case "simpo":
            margin = config["simpo_gamma"]
    objective = PairwiseObjective(link, Score(0.0, transform=transform), scale, margin=margin)
    out = pairwise_loss(both, halves(both.shape[0]), objective=objective)
    out.loss.backward()
    rewards = beta * objective.score.value(both.detach(), None, None, None)
    return {
        "losses": out.losses,
        "loss_mean": out.loss.detach(),
        "chosen_rewards": rewards.view(2, -1)[0],
        "rejected_rewards": rewards.view(2, -1)[1],
        "grad_chosen_logps": chosen.grad,
        "grad_rejected_logps": rejected.grad,
    }, {}


def _orpo(case: Case) -> tuple[dict, dict]:
    (chosen, rejected), both = _separate(case.inputs, "chosen_logps", "rejected_logps")
    beta = case.config["beta"]
    out = pairwise_loss(both, halves(both.shape[0]), objective=PairwiseObjective(Logistic(), Score(0.0, transform=LogOdds()), 1.0))
    (-beta * out.loss).backward()  # the trainer subtracts
    return {
        "losses": -beta * out.losses,
        "chosen_rewards": beta * chosen.detach(),
        "rejected_rewards": beta * rejected.detach(),
        "mean_log_sigmoid": -out.loss.detach(),
        "mean_log_odds": out.metrics_as_floats()["reward_margin"],
        "grad_chosen_logps_of_mean": chosen.grad,
        "grad_rejected_logps_of_mean": rejected.grad,
    }, {}


def _online(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    log_probs, mask = inputs["log_probs"].clone().requires_grad_(), inputs["mask"]
    first, second = inputs["rewards"].view(2, -1)
    pairs = halves(mask.shape[0])
    pairs = torch.where((first >= second)[:, None], pairs, pairs.flip(1))
    link, beta = (Logistic(), config["beta"]) if config["loss_type"] == "sigmoid" else (Square(1 / (2 * config["beta"])), 1.0)
    out = pairwise_loss(
        sequence_log_probs(log_probs, mask).log_probs,
        pairs,
        ref_log_probs=sequence_log_probs(inputs["ref_log_probs"], mask).log_probs,
        objective=PairwiseObjective(link, beta=beta),
    )
    out.loss.backward()
    return {"loss": out.loss.detach(), "grad_log_probs": log_probs.grad, "chosen_indices": pairs[:, 0], "rejected_indices": pairs[:, 1]}, {}


def _nash_md(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    log_probs, ref, mask = inputs["log_probs"], inputs["ref_log_probs"], inputs["mask"]
    ahead = inputs["win_probability"] - 0.5
    advantages = ahead[:, None] + reward.kl_rewards(log_probs, ref, mask, coefficient=config["beta"])
    objective = PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum())
    found = call(log_probs, advantages, mask, objective)
    policy, reference = sequence_log_probs(log_probs, mask).log_probs, sequence_log_probs(ref, mask).log_probs
    slack = {"grad_log_probs": beyond(mask)}
    return {"loss": found.loss, "score": ahead * policy, "kl": policy - reference, "grad_log_probs": found.gradient}, slack


def _xpo(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    sides = ("model_data", "ref_data")
    leaves = [inputs[f"log_probs_{side}"].clone().requires_grad_() for side in sides]
    found = torch.cat([sequence_log_probs(leaf, inputs[f"mask_{side}"]).log_probs for leaf, side in zip(leaves, sides)])
    ref = torch.cat([sequence_log_probs(inputs[f"ref_log_probs_{side}"], inputs[f"mask_{side}"]).log_probs for side in sides])
    pairs = halves(found.shape[0])
    pairs = torch.where(inputs["model_data_is_chosen"][:, None], pairs, pairs.flip(1))
    link, beta = (Logistic(), config["beta"]) if config["loss_type"] == "sigmoid" else (Square(1 / (2 * config["beta"])), 1.0)
    compared = pairwise_loss(found, pairs, ref_log_probs=ref, objective=PairwiseObjective(link, beta=beta))
    reference_data = found[pairs.shape[0] :]  # optimism: what the reference said becomes less likely
    optimism = response_loss(
        reference_data,
        torch.zeros_like(reference_data, dtype=torch.bool),
        objective=PairwiseObjective(Linear(), Score(0.0), config["alpha"]),
    )
    loss = compared.loss + optimism.loss
    loss.backward()
    return {
        "loss": loss.detach(),
        "dpo_losses": compared.losses,
        "xpo_losses": optimism.losses,
        "grad_log_probs_model_data": leaves[0].grad,
        "grad_log_probs_ref_data": leaves[1].grad,
    }, {f"grad_log_probs_{side}": beyond(inputs[f"mask_{side}"]) for side in sides}


def _bco(case: Case) -> tuple[dict, dict]:
    config, inputs = case.config, case.inputs
    (chosen, rejected), both = _separate(inputs, "chosen_logps", "rejected_logps")
    desirable = torch.arange(both.shape[0]) < chosen.shape[0]
    ref = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
    objective = PairwiseObjective(Logistic(), beta=config["beta"])
    out = response_loss(both, desirable, ref_log_probs=ref, reference_point=config["running_delta"], objective=objective)
    out.loss.backward()
    rewards = config["beta"] * (both.detach() - ref)
    return {
        "losses": out.losses,
        "chosen_rewards": rewards[desirable],
        "rejected_rewards": rewards[~desirable],
        "grad_chosen_logps": chosen.grad,
        "grad_rejected_logps": rejected.grad,
    }, {}


_SMALL = "float32 rewards are differences of log-probs a hundred times their size"
_MASKED = dict.fromkeys(("grad_log_probs", "grad_log_probs_model_data", "grad_log_probs_ref_data"), REASON)
ADAPTERS = {
    "trl_dpo": Adapter(
        dpo,
        dict.fromkeys(("rewards/chosen", "rewards/rejected", "rewards/margins"), _SMALL),
        ("the weights of WPO and LD-DPO are the caller's part",),
    ),
    "trl_experimental_preference": Adapter(experimental, _MASKED),
}
