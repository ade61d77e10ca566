"""verl's policy losses on this engine: one function per mode for verl's registry, and ppo_loss for a whole micro-batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..loss import policy_loss
from ..metrics import as_floats
from ..objective import EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean
from ..objective.aggregation import Aggregation
from ..sequences import sequences_of
from ..types import LossOutput
from . import verl_objective as mapping
from .verl_batch import check_mask, field, responses_of


class _Tokens(NamedTuple):
    """One micro-batch: rows (B, T), or packed (N,) with the row of each token."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor  # bool
    weights: Tensor | None  # rollout_is_weights
    n_rows: int
    width: int  # T, also of the rows that were packed
    rows: Tensor | None = None  # (N,) int64; None: (B, T)


class _Division(NamedTuple):
    """How tokens become one number: None, the denominator of this call alone, where verl says nothing of the whole batch."""

    aggregation: Aggregation
    denominator: float | Tensor | None

    def share(self, tokens: _Tokens) -> Tensor:
        """What one token's value counts in that number, in the shape of the tokens."""
        sequences = sequences_of("ppo_loss", tokens.mask, tokens.rows, needed=True)
        total = self.aggregation.count(tokens.mask, sequences).clamp(min=1) if self.denominator is None else self.denominator
        return self.aggregation.weights(tokens.mask, sequences, tokens.log_probs.dtype) / total


def loss_function(mode: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """A function for verl's register_policy_loss: verl's signature, verl's answer for `mode`.

    It differs from verl's own where that has no answer: what is stored behind the mask cannot touch the result, NaN included; a
    token with an infinite log-prob adds nothing to the policy term; a micro-batch without a trained token has loss 0, not 0 / 0.
    clip_cov draws its tokens by keys from torch's generator of the device (verl: torch.randperm), so the drawn tokens differ and their
    number does not. Metrics are Python floats, with one wait for the device.
    """
    name = mapping.PREFIX + mapping.mode_of("loss_function", mode)

    def loss(
        old_log_prob: Tensor,  # (B, T)
        log_prob: Tensor,  # (B, T)
        advantages: Tensor,  # (B, T)
        response_mask: Tensor,  # (B, T) bool, or 0 and 1
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,  # (B, T)
    ) -> tuple[Tensor, dict[str, float]]:
        if config is None:
            checks.fail(name, "config", "verl's ActorConfig", None, "pass config=..., as verl's ppo_loss does")
        mask = check_mask(name, response_mask)
        tokens = _Tokens(log_prob, old_log_prob, advantages, mask, rollout_is_weights, *mask.shape)
        division = _own_division(name, mode, tokens, config.global_batch_info) or _division(
            name, loss_agg_mode, tokens, config.global_batch_info
        )
        weights = _weights(mode, tokens)
        objective = mapping.objective_of(mode, config, division.aggregation, weighted=weights is not None)
        output = _evaluate(objective, tokens, weights, division.denominator)
        return output.loss, mapping.metrics_of(mode, output.metrics_as_floats())

    loss.__name__ = loss.__qualname__ = name
    return loss


def objective_function(name: str, objective: PolicyObjective) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """A function for verl's register_policy_loss of any objective: its own numbers, ratio and aggregation; only the batch is verl's.

    Denominators and dp_size are those of config.global_batch_info. Of the config nothing else is read, and loss_agg_mode must name
    the objective's own aggregation. Raises for an objective that reads what verl does not hand to a loss.
    """
    full = mapping.PREFIX + name
    needs = [*(["ref_log_probs"] if objective.needs_reference else []), *(["entropy"] if objective.needs_entropy else []), *objective.reads]
    if needs:
        checks.fail(full, "objective", "one of log-probs and advantages alone", f"one that reads {needs}", "verl hands none of these over")

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        own, info = objective.aggregation, {} if config is None else config.global_batch_info
        if type(own) is not type(mapping.aggregation_of(full, loss_agg_mode, length=1)):
            checks.fail(full, "loss_agg_mode", f"the objective's own, {type(own).__name__}", loss_agg_mode, "set actor.loss_agg_mode to it")
        scale = info.get("loss_scale_factor")
        if scale is not None and getattr(own, "length", scale) != scale:
            checks.fail(full, "loss_scale_factor", f"the objective's length, {own.length}", scale, "set actor.loss_scale_factor to it")
        mask = check_mask(full, response_mask)
        tokens = _Tokens(log_prob, old_log_prob, advantages, mask, rollout_is_weights, *mask.shape)
        composed = objective if rollout_is_weights is None else mapping.weighted(objective)
        output = _evaluate(composed, tokens, rollout_is_weights, mapping.denominator_of(full, own, info))
        return output.loss, mapping.metrics_of("", output.metrics_as_floats())

    loss.__name__ = loss.__qualname__ = full
    loss.objective = objective  # type: ignore[attr-defined]
    return loss


def ppo_loss(config: Any, model_output: Mapping[str, Any], data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """`verl.workers.utils.losses.ppo_loss` as one objective: policy term, entropy and KL over the response tokens alone, without padding.

        pg = policy_loss_fn(old_log_prob, log_prob, advantages, mask, loss_agg_mode, config, rollout_is_weights)   # verl's, padded
        loss = pg - entropy_coeff * agg_loss(entropy, mask) + kl_loss_coef * agg_loss(kl_penalty(log_prob, ref_log_prob), mask)

    For `worker.set_loss_fn(functools.partial(ppo_loss, config=actor_config))`. `config` is verl's ActorConfig; its loss_mode may have
    our prefix or not. `model_output`: log_probs and, if there, entropy, nested (B, j) or flat (tokens,). `data`: the micro-batch of
    verl's engine, nested or padded. `dp_group` is not read, as in verl. Same loss, gradients and metrics (Metric objects with verl's
    aggregation types) but for what `loss_function` lists. Raises for entropy_coeff without entropy, use_kl_loss without ref_log_prob,
    an unknown loss_mode. Two waits for the device: where responses lie, and the metrics.
    """
    function = "ppo_loss"
    mode = mapping.mode_of(function, config.policy_loss.loss_mode)
    info = {name: _required(function, data, name) for name in ("dp_size", "batch_num_tokens", "global_batch_size")}
    info["loss_scale_factor"] = config.loss_scale_factor
    kl = mapping.kl_penalty_of(function, config)
    if kl is not None and "ref_log_prob" not in data:
        checks.fail(
            function, "data['ref_log_prob']", "there with use_kl_loss=True", None, "let verl score the batch with the reference policy"
        )
    bonus = EntropyBonus(config.entropy_coeff) if config.entropy_coeff else None
    if bonus is not None and model_output.get("entropy") is None:
        fix = "set actor.calculate_entropy=True"
        checks.fail(function, "model_output['entropy']", f"there with entropy_coeff={config.entropy_coeff}", None, fix)

    places = responses_of(function, model_output["log_probs"], data)
    take = lambda name: field(function, name, data, places)  # noqa: E731
    tokens = _Tokens(
        places.take(model_output["log_probs"]),
        take("old_log_probs"),
        take("advantages"),
        check_mask(function, take("response_mask")),
        take("rollout_is_weights") if "rollout_is_weights" in data else None,
        places.n_rows,
        places.width,
        places.rows,
    )
    entropy = None if model_output.get("entropy") is None else places.take(model_output["entropy"])
    reference = None if kl is None else take("ref_log_prob")

    division = _division(function, config.loss_agg_mode, tokens, info)
    share, weights = division.share(tokens), _weights(mode, tokens)
    own = _own_division(function, mode, tokens, info)
    if own is not None:  # the policy term is averaged otherwise than the others: by its weights
        weights = own.share(tokens) / share * (1.0 if weights is None else weights)
    objective = mapping.objective_of(mode, config, division.aggregation, weighted=weights is not None, kl=kl, bonus=bonus)
    output = _evaluate(objective, tokens, weights, division.denominator, reference=reference, entropy=entropy)
    summed = info["dp_size"] > 1 or any(info[name] is not None for name in ("batch_num_tokens", "global_batch_size", "loss_scale_factor"))
    return output.loss, _metrics(mode, config, output, tokens, share, kl, reference, entropy, summed=summed)


def _metrics(
    mode: str,
    config: Any,
    output: LossOutput,
    tokens: _Tokens,
    share: Tensor,
    kl: KLPenalty | None,
    reference: Tensor | None,
    entropy: Tensor | None,
    *,
    summed: bool,
) -> dict[str, Any]:
    """verl's metrics under verl's names, read from the device at once. `summed`: micro-batches add up to the mean over the whole batch."""
    from verl.utils.metric import AggregationType, Metric

    def total(values: Tensor | None) -> Tensor:
        return share.new_zeros(()) if values is None else torch.where(tokens.mask, share * values.detach(), 0).sum()

    estimate = None if kl is None else kl.estimator.value(tokens.log_probs.detach(), reference)
    sums = torch.stack([output.loss.detach(), total(entropy), total(estimate)])
    vector = torch.cat([output.metrics.double(), sums.double()]).cpu()
    whole, entropy_loss, kl_loss = vector[-3:].tolist()
    kind = AggregationType.SUM if summed else AggregationType.MEAN
    metrics: dict[str, Any] = Metric.from_dict(mapping.metrics_of(mode, as_floats(vector[:-3])), aggregation=AggregationType.MEAN)
    policy_term = whole + config.entropy_coeff * entropy_loss - (0.0 if kl is None else kl.coefficient * kl_loss)
    metrics["actor/pg_loss"] = Metric(value=policy_term, aggregation=kind)
    if entropy is not None:
        metrics["actor/entropy_loss"] = Metric(value=entropy_loss, aggregation=kind)
    if kl is not None:
        metrics["kl_loss"] = Metric(value=kl_loss, aggregation=kind)
        metrics["kl_coef"] = config.kl_loss_coef
    return metrics


def _division(function: str, name: str, tokens: _Tokens, info: Mapping[str, Any]) -> _Division:
    scale = info.get("loss_scale_factor")
    aggregation = mapping.aggregation_of(function, name, length=tokens.width if scale is None else scale)
    return _Division(aggregation, mapping.denominator_of(function, aggregation, info))


def _own_division(function: str, mode: str, tokens: _Tokens, info: Mapping[str, Any]) -> _Division | None:
    """Of the modes that have one whatever the config says; geo_mean counts all rows of the micro-batch, whatever it is a part of."""
    if mode == "geo_mean":
        return _Division(SequenceMeanTokenMean(), float(tokens.n_rows))
    return _division(function, "seq-mean-token-mean", tokens, info) if mode == "sapo" else None


def _weights(mode: str, tokens: _Tokens) -> Tensor | None:
    """rollout_is_weights as the mode applies them: geo_mean takes their geometric mean over the row."""
    if tokens.weights is None or mode != "geo_mean":
        return tokens.weights
    sequences = sequences_of("rollout_is_weights", tokens.mask, tokens.rows, needed=True)
    logs = torch.where(tokens.mask, torch.log(tokens.weights + 1e-10), 0)  # verl's bound for a weight of 0
    return torch.exp(sequences.means(logs.reshape(-1))).view(tokens.mask.shape)


def _evaluate(
    objective: PolicyObjective,
    tokens: _Tokens,
    weights: Tensor | None,
    denominator: float | Tensor | None,
    *,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
) -> LossOutput:
    extras = {} if weights is None else {"weights": weights}
    if "token_keys" in objective.reads:
        extras["token_keys"] = torch.randint(2**62, tokens.mask.shape, device=tokens.mask.device)
    return policy_loss(
        tokens.log_probs,
        tokens.advantages,
        tokens.mask,
        old_log_probs=tokens.old_log_probs,
        ref_log_probs=reference,
        entropy=entropy,
        extras=extras,
        sequence_ids=tokens.rows,
        objective=objective,
        denominator=denominator,
    )


def _required(function: str, data: Any, name: str) -> Any:
    if name not in data:
        checks.fail(function, "data", f"a micro-batch with {name}", f"one without {name}", "verl's engine sets it; pass None where unknown")
    return data[name]
