"""Preference losses of the papers' own code: INPO, CPL, RPO, EGPO and its relatives, f-DPG, and the menu of arXiv 2404.14367."""

import torch
from torch import Tensor

import gigpo_fast
from gigpo_fast import logprob, reward
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import (
    AdvantageWeightedNLL,
    CISPOAbsolute,
    NoRatio,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    TokenSum,
)
from gigpo_fast.objective import NegativeLogLikelihood as TokenNLL
from gigpo_fast.pairwise import (
    ChiSquare,
    ForwardKL,
    Hinge,
    JensenShannon,
    Linear,
    Logistic,
    NegativeLogLikelihood,
    PairwiseObjective,
    ReverseChiSquare,
    ReverseKL,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
    TotalVariation,
    all_pairs,
    halves,
    pairwise_loss,
    pseudo_rewards,
    response_loss,
    sequence_log_probs,
)

from .adapter import Adapter, Answer
from .policy import call
from .tensors import Case

_DIVERGENCES = {
    "kl": ForwardKL(),
    "reverse_kl": ReverseKL(),
    "js": JensenShannon(),
    "tv": TotalVariation(),
    "chi_square": ChiSquare(),
    "reverse_chi_square": ReverseChiSquare(),
}


def _leaf(*values: Tensor) -> Tensor:
    return torch.cat(values).clone().requires_grad_()


def comal(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs = _leaf(inputs["policy_chosen_logps"], inputs["policy_rejected_logps"])
    given = {"ref_log_probs": torch.cat([inputs["reference_chosen_logps"], inputs["reference_rejected_logps"]])}
    beta = 1.0
    match config["function"]:
        case "dpo_loss":
            beta, free = config["beta"], config["reference_free"]
            objective = PairwiseObjective(Logistic() if config["normalize"] else Linear(), Score(float(not free)), beta)
            given = {} if free else given
        case "ipo_loss":
            objective = PairwiseObjective(Square(1 / (2 * config["eta"])), beta=1.0)
        case "nash_loss":
            share = config["tau_eta_ratio"]
            objective = PairwiseObjective(Square(1 / (2 * config["eta"])), Score(share, 1 - share), 1.0)
            given["previous_log_probs"] = torch.cat([inputs["last_chosen_logps"], inputs["last_rejected_logps"]])
            given = {
                name: value
                for name, value in given.items()
                if getattr(objective.score, name.removesuffix("_log_probs").replace("ref", "reference"))
            }
    out = pairwise_loss(log_probs, halves(log_probs.shape[0]), objective=objective, **given)
    out.loss.backward()
    chosen, rejected = log_probs.grad.view(2, -1)
    ref = torch.cat([inputs["reference_chosen_logps"], inputs["reference_rejected_logps"]])
    rewards = beta * (log_probs.detach() - ref)  # reported against the reference in any case
    found = {"losses": out.losses, "loss": out.loss, "grad_policy_chosen": chosen, "grad_policy_rejected": rejected}
    return Answer(found | {"chosen_rewards": rewards.view(2, -1)[0], "rejected_rewards": rewards.view(2, -1)[1]})


def cpl(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    kl = config["variant"] == "cpl_kl"
    objective = PairwiseObjective(Logistic(), Score(float(kl)), config["alpha"], config["contrastive_bias"])
    paired = "label" in inputs
    names = ("log_probs_1", "log_probs_2") if paired else ("log_probs",)
    tokens, rows = _leaf(*(inputs[name] for name in names)), inputs[names[0]].shape[0]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found = sequence_log_probs(tokens, mask).log_probs
    given = {}
    if kl:
        given["ref_log_probs"] = sequence_log_probs(torch.cat([inputs[f"ref_{name}"] for name in names]), mask).log_probs
    if paired:  # label 1: the second one is better; with a bias the two orders are two comparisons
        pairs = halves(2 * rows)
        pairs, weights = torch.cat([pairs, pairs.flip(1)]), torch.cat([1 - inputs["label"], inputs["label"]])
        out = pairwise_loss(found, pairs, weights=weights, objective=objective, denominator=float(rows), **given)
    else:
        pairs = all_pairs(inputs["scores"], torch.zeros(rows, dtype=torch.int64))
        out = pairwise_loss(found, pairs, objective=objective, **given)
    cloned = mask
    if config["bc_data"] == "pos" and paired:
        cloned = mask & torch.cat([inputs["label"] <= 0.5, inputs["label"] >= 0.5])[:, None]
    cloning = policy_loss(tokens, torch.zeros_like(tokens), cloned, objective=PolicyObjective(NoRatio(), TokenNLL())).loss
    loss = out.loss + config["bc_coeff"] * cloning
    loss.backward()
    outputs = {"loss": loss, "cpl_loss": out.loss, "bc_loss": cloning}
    outputs["segment_score"] = objective.beta * (found.detach() - given.get("ref_log_probs", 0.0))
    outputs |= {f"grad_{name}": gradient for name, gradient in zip(names, tokens.grad.split(rows))}
    return Answer(outputs)


def rpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "logits" in inputs:
        return _rpo_from_logits(config, inputs)
    beta, name = config["beta"], config["loss_type"]
    log_probs = _leaf(inputs["policy_chosen_logps"], inputs["policy_rejected_logps"])
    ref = torch.cat([inputs["reference_chosen_logps"], inputs["reference_rejected_logps"]])
    free, rows = config["reference_free"], log_probs.shape[0] // 2
    given = {} if free else {"ref_log_probs": ref}
    nll = NegativeLogLikelihood(config["eta"] * beta)
    chosen = torch.arange(2 * rows) < rows
    smoothing = config["label_smoothing"]
    paired = {
        "sigmoid": (Logistic(smoothing), beta),
        "ipo": (Square(1 / (2 * beta)), 1.0),
        "hinge": (Hinge(), beta),
        "robust": (Robust(smoothing), beta),
        "apo_down": (Sigmoid(), beta),
    }
    single = {
        "sppo_hard": (Square(0.5 / beta), 1.0, {}),
        "apo_zero": (Sigmoid(), beta, {}),
        "nca_pair": (SoftLabel(), beta, {"targets": torch.where(chosen, 2 / 3, 1.0), "weights": torch.where(chosen, 1.5, 0.5)}),
    }
    losses, loss = 0.0, 0.0
    if name in paired:
        link, scale = paired[name]
        objective = PairwiseObjective(link, Score(float(not free)), scale, nll=nll)
        out = pairwise_loss(log_probs, halves(2 * rows), objective=objective, **given)
        loss, losses = out.loss, out.losses
    else:
        link, scale, keywords = single[name]
        # The NLL enters through weights that are not 1 for nca_pair: its coefficient is divided by them.
        own = NegativeLogLikelihood(nll.coefficient / (1.5 if name == "nca_pair" else 1.0))
        out = response_loss(
            log_probs, chosen, objective=PairwiseObjective(link, beta=scale, nll=own), denominator=float(rows), **keywords, **given
        )
        loss, losses = out.loss, (out.losses * keywords.get("weights", 1.0)).view(2, -1).sum(0)
    if name == "apo_down":  # the chosen reward itself is pushed down
        pushed = response_loss(
            log_probs, ~chosen, weights=chosen.double(), objective=PairwiseObjective(Sigmoid(), beta=beta), denominator=float(rows), **given
        )
        loss, losses = loss + pushed.loss, losses + pushed.losses[:rows]
    loss.backward()
    grads = log_probs.grad.view(2, -1)
    rewards = (beta * (log_probs.detach() - ref)).view(2, -1)  # reported against the reference in any case
    found = {"losses": losses, "loss": loss, "chosen_rewards": rewards[0], "rejected_rewards": rewards[1]}
    if "backward_error" in case.outputs:
        return Answer(found | {"grad_policy_chosen": None, "grad_policy_rejected": None, "backward_error": case.outputs["backward_error"]})
    return Answer(found | {"grad_policy_chosen": grads[0], "grad_policy_rejected": grads[1]})


def _rpo_from_logits(config, inputs) -> Answer:
    logits, ids = inputs["logits"].clone().requires_grad_(), inputs["input_ids"][:, 1:].contiguous()
    places = torch.arange(1, inputs["input_ids"].shape[1])
    prompts = torch.tensor(inputs["prompt_id_lens"]).repeat(2)
    mask = (places >= prompts[:, None]) & (inputs["attention_mask"][:, 1:] > 0)
    score = lambda logits: sequence_log_probs(logprob.token_log_probs(logits[:, :-1].contiguous(), ids).log_probs, mask)  # noqa: E731
    found, ref = score(logits), score(inputs["ref_logits"])
    link, beta = (Square(1 / (2 * config["beta"])), 1.0) if config["ipo"] else (Logistic(config["label_smoothing"]), config["beta"])
    given, pairs = {"ref_log_probs": ref.log_probs}, halves(ids.shape[0])
    nll = NegativeLogLikelihood(config["nll_loss_coef"], per_token=True)
    whole = pairwise_loss(found.log_probs, pairs, lengths=found.lengths, objective=PairwiseObjective(link, beta=beta, nll=nll), **given)
    whole.loss.backward()
    alone = pairwise_loss(found.log_probs.detach(), pairs, objective=PairwiseObjective(link, beta=beta), **given).loss
    outputs = {"loss": whole.loss, "preference_loss": alone, "grad_logits": logits.grad}
    outputs["nll_loss"] = (-found.log_probs / found.lengths).detach().view(2, -1)[0].mean()
    for name, value in {"": found.log_probs, "ref_": ref.log_probs}.items():
        outputs |= {f"{name}chosen_logps": value.view(2, -1)[0], f"{name}rejected_logps": value.view(2, -1)[1]}
    return Answer(outputs)


def egpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] == "ExtragradientTrainer._compute_losses":
        return _egpo_of_chunks(config, inputs)
    start, reference = inputs["logits"][..., 0], torch.log_softmax(inputs["ref_logits"][..., 0], -1)
    game = _Game(inputs["preference_matrix"], reference, config, case.outputs)
    opponent = torch.softmax(start, -1)
    outputs = {}
    if "mixture" in "".join(case.outputs):
        mixed = config["true_lr"] * config["beta"]
        opponent = torch.softmax((1 - mixed) * torch.log_softmax(start, -1) + mixed * reference, -1)
        if config["function"] != "nash_md_sample":
            outputs["pi_mixture"] = opponent.view(case.outputs["pi_mixture"].shape)
    if config["function"].startswith("extragradient"):  # the half step, whose end is the opponent
        _, gradient = game.loss(start, opponent, half=True)
        opponent = torch.softmax(start - config["sgd_lr"] * gradient, -1)
    loss, gradient = game.loss(start, opponent)
    outputs |= {"loss": loss, "grad_logits": gradient[..., None], "logits_at_loss": start[..., None]}
    return Answer(outputs | {"logits_after_step": (start - config["sgd_lr"] * gradient)[..., None]})


class _Game:
    """Several preference games at once; every pair of actions of a game, or those that were drawn, is a comparison."""

    def __init__(self, preferences: Tensor, reference: Tensor, config: dict, drawn: dict) -> None:
        self.P, self.reference, self.config, self.drawn = preferences, reference, config, drawn
        self.runs, self.actions, _ = preferences.shape

    def loss(self, logits: Tensor, opponent: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
        """The loss, summed over the games, and its gradient in the logits."""
        logits = logits.clone().requires_grad_()
        policy = torch.log_softmax(logits, -1)
        name, beta, n = self.config["function"], self.config["beta"], self.actions
        wins = (self.P @ opponent[..., None])[..., 0]
        run = torch.arange(self.runs)[:, None]
        if name.startswith("nash_md_pg"):
            y, weights, denominator = torch.arange(n).expand(self.runs, n), policy.detach().exp(), 1.0
            if "drawn_y" in self.drawn:
                y, weights, denominator = self.drawn["drawn_y"], None, float(self.config["num_samples"])
                wins = self.P[run, y, self.drawn["drawn_yp"]]
            log_probs = policy.gather(1, y)
            mask = torch.ones_like(log_probs, dtype=torch.bool)
            own = reward.kl_rewards(log_probs, self.reference.gather(1, y), mask, coefficient=beta)
            advantages = (wins + own) if weights is None else weights * (wins + own)
            loss = policy_loss(
                log_probs,
                advantages,
                mask,
                objective=PolicyObjective(NoRatio(), Reinforce(), aggregation=TokenSum()),
                denominator=denominator,
            ).loss
        else:
            y, other = (
                places.reshape(-1).expand(self.runs, n * n) for places in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
            )
            weights, denominator = None, float(n * n)
            if "drawn_y" in self.drawn and not half:
                y, other, denominator = self.drawn["drawn_y"], self.drawn["drawn_yp"], float(self.config["num_samples"])
                contrast = self.drawn["prefs_contrast"]
            elif name.startswith("online_ipo_2"):
                contrast = self.P[run, y, other] - 0.5
                weights, denominator = (policy.detach().gather(1, y) + policy.detach().gather(1, other)).exp().reshape(-1), 1.0
            else:
                contrast = wins.gather(1, y) - wins.gather(1, other)
            pairs = torch.stack([run * n + y, run * n + other], -1).reshape(-1, 2)
            loss = pairwise_loss(
                policy.reshape(-1),
                pairs,
                ref_log_probs=self.reference.reshape(-1),
                targets=contrast.reshape(-1) / beta,
                weights=weights,
                objective=PairwiseObjective(Square(), beta=1.0),
                denominator=denominator,
            ).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.detach(), gradient


def _egpo_of_chunks(config, inputs) -> Answer:
    """Several prefixes of each answer, each a comparison of its own."""
    tokens = inputs["log_probs"].clone().requires_grad_()  # (pairs, 2, chunks)
    rows = tokens.transpose(1, 2).reshape(-1)
    out = pairwise_loss(
        rows,
        torch.arange(rows.shape[0]).view(-1, 2),
        ref_log_probs=inputs["ref_log_probs"].transpose(1, 2).reshape(-1),
        targets=((inputs["prefs"][..., 0] - inputs["prefs"][..., 1]) / config["beta"]).reshape(-1),
        objective=PairwiseObjective(Square(), beta=1.0),
    )
    out.loss.backward()
    return Answer({"loss": out.loss, "grad_log_probs": tokens.grad})


def understanding(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    log_probs, mask = inputs["log_probs"], torch.ones_like(inputs["log_probs"], dtype=torch.bool)
    rewards = inputs["rewards"]
    if "loss_type" in config:
        pairs = all_pairs(rewards, torch.arange(rewards.shape[0]) // config["N"], least=config["threshold"] or 0.0)
        link, beta = (Logistic(), config["beta"]) if config["loss_type"] == "dpo" else (Square(config["beta"]), 1.0)
        leaf = log_probs.clone().requires_grad_()
        out = pairwise_loss(leaf, pairs, ref_log_probs=inputs["ref_log_probs"], objective=PairwiseObjective(link, beta=beta))
        out.loss.backward()
        count = float(pairs.shape[0])
        return Answer({"loss": out.loss, "total": out.losses.sum(), "pairs": count, "grad_log_probs": leaf.grad})
    if config["function"] == "on_policy":
        used = rewards if config["normalize_rewards_per_state"] else _normalised_as_they_come(rewards)
        advantages = used - (used.min() if config["remove_negative_gradients"] else 0.0) - config["beta"]
        found = call(log_probs, advantages, mask, PolicyObjective(NoRatio(), Reinforce()))
        return Answer({"loss": found.loss, "normalized_rewards": used, "grad_log_probs": found.gradient})
    if not config["is_best_of_n"]:
        found = call(log_probs, rewards, mask, PolicyObjective(NoRatio(), AdvantageWeightedNLL(config["beta"])))
        return Answer({"loss": found.loss, "grad_log_probs": found.gradient})
    ranked, kind = rewards.view(-1, config["N"]), config["negative_gradient_type"]
    best = torch.nn.functional.one_hot(ranked.argmax(1), config["N"])
    others = torch.nn.functional.one_hot(ranked.argmin(1), config["N"]) if kind == "worst_action" else 1 - best
    share = 0.0 if kind == "no_negative_gradient" else config["beta"]
    share /= config["N"] - 1 if kind == "average_over_worse_actions" else 1
    advantages = (best - share * others).double().reshape(-1)
    found = call(
        log_probs, advantages, mask, PolicyObjective(NoRatio(), Reinforce(), aggregation=TokenSum()), denominator=float(ranked.shape[0])
    )
    outputs = {"loss": found.loss, "grad_log_probs": found.gradient}
    if kind.endswith("_constrained"):  # the same gradient; the value is against the data's log-probs
        outputs["loss"] = found.loss + (advantages * inputs["data_log_probs"]).sum() / ranked.shape[0]
    return Answer(outputs)


def _normalised_as_they_come(rewards: Tensor) -> Tensor:
    """Each reward by the mean and the deviation (over n) of all up to itself."""
    state, found = reward.RunningMoments.empty(), []
    for one in rewards:
        _, state = reward.running_scale(one[None], state)
        found.append((one - state.mean) / torch.where(state.variance > 0, state.variance, 1.0).sqrt())
    return torch.stack(found)


def fdpg(case: Case) -> Answer:
    config, outputs, earlier = case.config, {}, []
    objective = PolicyObjective(SequenceProductRatio(None), CISPOAbsolute(float("inf")), aggregation=SequenceMeanTokenSum())
    for place, given in enumerate(case.inputs["calls"]):
        log_probs, proposal = given["policy_log_probs"], given["proposal_log_probs"]
        target = given["target_log_scores"] - torch.tensor(given["z"], dtype=torch.float64).log()
        pseudo = pseudo_rewards(log_probs, target, divergence=_DIVERGENCES[config["divergence"]])
        before = torch.cat(earlier)[-config["baseline_window_size"] :].mean() if config["use_baseline"] and earlier else None
        advantages = pseudo if before is None else pseudo - before
        mask = torch.ones_like(log_probs, dtype=torch.bool)[:, None]
        with gigpo_fast.validation("metadata"):  # an impossible sample has an infinite advantage, which full validation refuses
            found = call(log_probs[:, None], advantages[:, None], mask, objective, old_log_probs=proposal[:, None])
        earlier.append(pseudo)
        after = torch.cat(earlier)[-config["baseline_window_size"] :].mean() if config["use_baseline"] else None
        named = {"loss": found.loss, "grad_policy_log_probs": found.gradient[:, 0], "pseudo_reward": pseudo, "advantage": advantages}
        named |= {"importance_ratio": (log_probs - proposal).exp(), "baseline_before": before, "baseline_after": after}
        outputs |= {f"calls.{place}.{name}": value for name, value in named.items()}
    return Answer(outputs)


ADAPTERS = {
    "comal_inpo_ipo_dpo": Adapter(comal),
    "cpl": Adapter(
        cpl,
        excluded={"cpl/alpha=1.0/bias=0.5/bc=0.0,all/score_ties": "ties make no pair here; there the order of a sort decides"},
        outside={"accuracy": "theirs counts soft labels and ties as well"},
    ),
    "egpo": Adapter(
        egpo,
        outside={
            "drawn_*": "what was drawn, taken as it is",
            "prefs_contrast": "what was drawn, taken as it is",
            "pi_mixture": "not normalised where it is only drawn from",
            "kl": "the authors' own report beside the loss",
        },
    ),
    "fdpg": Adapter(fdpg),
    "rpo": Adapter(rpo),
    "understanding_rlhf": Adapter(understanding),
}
