"""Preference losses of sequence log-probs: of pairs, of single labelled responses, and straight from hidden states and the head."""

import torch
from torch import Tensor

from .. import checks
from ..constants import constant
from ..head import Head
from ..inference import takes_inference_tensors
from ..objective.policy import with_nan
from ..values import all_finite, check_finite
from . import metrics
from .metrics import PairwiseOutput
from .objective import PairwiseObjective
from .pairs import in_range
from .sequences import linear_sequence_log_probs


@takes_inference_tensors
def pairwise_loss(
    log_probs: Tensor,  # (S,) float, log pi of whole responses: sequence_log_probs(...).log_probs
    pairs: Tensor,  # (P, 2) int64, the numbers of the chosen and of the rejected response
    *,
    ref_log_probs: Tensor | None = None,  # (S,) of the reference policy
    previous_log_probs: Tensor | None = None,  # (S,) of the previous iterate (INPO)
    lengths: Tensor | None = None,  # (S,) float, trained tokens of each response, where the objective divides by them
    targets: Tensor | None = None,  # (P,) float, what the link compares h with
    weights: Tensor | None = None,  # (P,) float, factor of each pair's loss; 0 leaves it out, whatever is stored there
    objective: PairwiseObjective,
    denominator: float | Tensor | None = None,
) -> PairwiseOutput:
    """The link of every pair's log-odds, weighted, summed and divided by the denominator.

        score = (log_probs - reference * ref_log_probs - previous * previous_log_probs)[pairs]        # (P, 2)
        h = beta * (score[:, 0] - rejected * score[:, 1]) - margin
        (weights * link.loss(h, targets)).sum() / denominator                             # + the NLL and the chosen_down term

    `denominator` None is this call's number of pairs, right for a full batch only; with micro-batches or ranks pass the whole batch's.
    A response may stand in any number of pairs. A number that is no response's (-1 too) is refused where values are checked, and makes
    the loss NaN elsewhere. Arithmetic in fp32 (fp64 for fp64). Gradients reach log_probs alone: what else requires one is a constant
    and is warned of once. Raises on a
    tensor that the objective needs and lacks, and on one that it would not read. Sources: see the links, and recipes.names().
    """
    function = "pairwise_loss"
    _objective(function, objective)
    checks.tensor(function, "log_probs", log_probs, shape=(None,), dtypes=checks.FLOATS, fix="sum them with pairwise.sequence_log_probs")
    size = log_probs.shape[0]
    checks.tensor(
        function,
        "pairs",
        pairs,
        shape=(None, 2),
        dtypes=(torch.int64,),
        device=log_probs.device,
        fix="pass the numbers of the chosen and the rejected response, one pair a row",
    )
    dtype, count = checks.compute_dtype(log_probs.dtype), (pairs.shape[0],)
    given = _given(function, objective, dtype, (size,), log_probs.device, ref_log_probs, previous_log_probs, lengths)
    targets, weights = _per_pair(function, objective, dtype, count, log_probs.device, targets, weights)
    live = torch.ones(count, dtype=torch.bool, device=log_probs.device) if weights is None else weights != 0
    pairs, log_probs = in_range(function, pairs, log_probs, live, "count responses from 0; weight 0 leaves a pair out")
    # Indexing by a tensor, whose gradient adds up in a fixed order. A pair that is left out is a harmless one before anything is computed.
    pick = lambda value: None if value is None else torch.where(live[:, None], value[pairs], 0)  # noqa: E731
    values, (ref, previous, lengths) = pick(log_probs.to(dtype)), (pick(value) for value in given)
    score = objective.score.value(values, ref, previous, lengths)
    _check_values(function, objective, live, (values, ref, previous, lengths), score, targets, weights)
    h = objective.beta * (score[:, 0] - objective.rejected * score[:, 1]) - objective.margin
    losses = objective.link.loss(h, targets)
    if objective.nll is not None:
        nll = -values / lengths.clamp(min=1) if objective.nll.per_token else -values
        losses = losses + objective.nll.coefficient * (nll.mean(1) if objective.nll.both else nll[:, 0])
    if objective.chosen_down is not None:
        losses = losses + objective.chosen_down.loss(-objective.beta * score[:, 0], None)
    counted = live[:, None].expand(-1, 2)
    return _finish(function, objective, losses, weights, live, denominator, score, values, counted)


@takes_inference_tensors
def linear_pairwise_loss(
    hidden: Tensor,  # (B, T, H) or (N, H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (B, T) or (N,) int64: the responses' tokens, at the positions that predict them
    mask: Tensor,  # shape of token_ids, bool, True = this token belongs to the response
    pairs: Tensor,  # (P, 2) int64, rows (or sequence numbers) of the chosen and of the rejected response
    *,
    ref_log_probs: Tensor | None = None,  # (S,) of whole responses under the reference policy
    previous_log_probs: Tensor | None = None,  # (S,)
    targets: Tensor | None = None,  # (P,)
    weights: Tensor | None = None,  # (P,)
    sequence_ids: Tensor | None = None,  # shape of token_ids, int64; default the row
    sequences: int | None = None,
    temperature: float | Tensor = 1.0,  # or shape of token_ids
    objective: PairwiseObjective,
    denominator: float | Tensor | None = None,
    chunk_bytes: int | None = None,
    invariant: bool = False,
) -> PairwiseOutput:
    """`pairwise_loss` of hidden states and head: no N x V logits are held, prompt and padding never reach the head.

        found = linear_sequence_log_probs(hidden, head, token_ids, mask, sequence_ids=..., sequences=..., temperature=...)
        pairwise_loss(found.log_probs, pairs, lengths=found.lengths, ref_log_probs=ref_log_probs, ...)

    8NVH operations over the trained tokens. Memory and precision: see `linear_sequence_log_probs`, which under no_grad also
    scores the reference.
    """
    _objective("linear_pairwise_loss", objective)
    found = linear_sequence_log_probs(
        hidden,
        head,
        token_ids,
        mask,
        sequence_ids=sequence_ids,
        sequences=sequences,
        temperature=temperature,
        chunk_bytes=chunk_bytes,
        invariant=invariant,
    )
    return pairwise_loss(
        found.log_probs,
        pairs,
        ref_log_probs=ref_log_probs,
        previous_log_probs=previous_log_probs,
        lengths=found.lengths if objective.needs_lengths else None,
        targets=targets,
        weights=weights,
        objective=objective,
        denominator=denominator,
    )


@takes_inference_tensors
def response_loss(
    log_probs: Tensor,  # (S,) float, log pi of whole responses
    desirable: Tensor,  # (S,) bool, True = a good response
    *,
    ref_log_probs: Tensor | None = None,  # (S,)
    previous_log_probs: Tensor | None = None,  # (S,)
    lengths: Tensor | None = None,  # (S,) float
    targets: Tensor | None = None,  # (S,) float, what the link compares h with
    weights: Tensor | None = None,  # (S,) float; 0 leaves a response out
    reference_point: float | Tensor = 0.0,  # in units of beta times the score
    objective: PairwiseObjective,
    denominator: float | Tensor | None = None,
) -> PairwiseOutput:
    """The link of every single labelled response against a reference point, for data that come without pairs: KTO, BCO, SPPO.

        r = beta * score(log_probs)
        h = torch.where(desirable, r - reference_point, reference_point - r) - margin
        (weights * link.loss(h, targets)).sum() / denominator                            # + the NLL of the desirable ones

    The reference point is a constant: KTO's is beta times the estimated KL of the policy from the reference, clamped at 0; BCO's the mean
    of the rewards. `objective.rejected` must be 1: there is no other response. Everything else as in `pairwise_loss`; the metrics of the
    chosen are those of the desirable ones, and without pairs there is no margin and no accuracy.
    """
    function = "response_loss"
    _objective(function, objective)
    if objective.rejected != 1 or objective.chosen_down is not None or (objective.nll is not None and objective.nll.both):
        checks.fail(
            function,
            "objective",
            "one with rejected=1, no chosen_down and no nll of both responses",
            objective,
            "a single response has no partner; pass weights for the undesirable ones",
        )
    checks.tensor(function, "log_probs", log_probs, shape=(None,), dtypes=checks.FLOATS, fix="sum them with pairwise.sequence_log_probs")
    count, device, dtype = tuple(log_probs.shape), log_probs.device, checks.compute_dtype(log_probs.dtype)
    checks.mask(function, desirable, count, device, name="desirable")
    given = _given(function, objective, dtype, count, device, ref_log_probs, previous_log_probs, lengths)
    targets, weights = _per_pair(function, objective, dtype, count, device, targets, weights)
    if isinstance(reference_point, Tensor):
        checks.tensor(function, "reference_point", reference_point, shape=(), fix="pass a float or a 0-dim tensor")
        reference_point = constant(function, "reference_point", reference_point).to(device, dtype)
    else:
        checks.number(function, "reference_point", reference_point, fix="0 compares with the reference policy")
    live = torch.ones(count, dtype=torch.bool, device=device) if weights is None else weights != 0
    keep = lambda value: None if value is None else torch.where(live, value, 0)  # noqa: E731
    values, (ref, previous, lengths) = keep(log_probs.to(dtype)), (keep(value) for value in given)
    score = objective.score.value(values, ref, previous, lengths)
    _check_values(function, objective, live, (values, ref, previous, lengths), score, targets, weights)
    ahead = objective.beta * score - reference_point
    losses = objective.link.loss(torch.where(desirable, ahead, -ahead) - objective.margin, targets)
    if objective.nll is not None:
        nll = -values / lengths.clamp(min=1) if objective.nll.per_token else -values
        losses = losses + objective.nll.coefficient * torch.where(desirable, nll, 0)
    counted = torch.stack([live & desirable, live & ~desirable], 1)
    twice = lambda value: value[:, None].expand(-1, 2)  # noqa: E731
    return _finish(function, objective, losses, weights, live, denominator, twice(score), twice(values), counted)


def _check_values(function, objective, live, given, score, targets, weights) -> None:
    """Refuse what is not finite in a comparison that counts; of pairs the place in the message is [pair, 0 chosen or 1 rejected]."""
    if not checks.values_wanted(live, score, targets, weights):
        return
    score_is_finite = all_finite(score)
    if score_is_finite and objective.score.transform is None:  # a finite difference has finite terms; not so what it is divided by
        given = (None, None, None, given[3])
    used = live[:, None] if score.dim() == 2 else live
    of_responses = dict(zip(("log_probs", "ref_log_probs", "previous_log_probs", "lengths"), given))
    for name, value in {**of_responses, "targets": targets, "weights": weights}.items():
        if value is not None:
            check_finite(function, name, value, used if name in of_responses else live, where="in every comparison that counts")
    if not score_is_finite and not bool(torch.where(used, score.detach(), 0).isfinite().all()):
        place = (used & ~score.isfinite()).nonzero()[0].tolist()
        value, lengths = given[0].detach()[tuple(place)], given[3]
        empty = lengths is not None and bool(lengths[tuple(place)] == 0)
        kind = ", which is empty" if empty else ", which is certain (log-prob 0)" if value == 0 else ""
        response = f"response {place[1]} of pair {place[0]}" if len(place) == 2 else f"response {place[0]}"
        got = f"{float(score[tuple(place)])} of {response}{kind}"
        checks.fail(function, "log_probs", "of a finite score", got, "leave it out: weights of 0 there, or drop the comparison")


def _finish(function, objective, losses, weights, live, denominator, score, values, counted) -> PairwiseOutput:
    """Weights, denominator and metrics, which all losses share."""
    if denominator is None:
        total = losses.new_tensor(float(max(losses.shape[0], 1)))
    elif isinstance(denominator, Tensor):
        checks.one_number(function, "denominator", denominator, fix="pass a 0-dim tensor or a float")
        total = constant(function, "denominator", denominator).to(losses.device, losses.dtype)
    else:
        total = losses.new_tensor(checks.number(function, "denominator", denominator, above=0, fix="count the whole batch's pairs"))
    losses = torch.where(live, losses, 0)
    weighted = with_nan(losses if weights is None else losses * weights, values.sum(1))
    loss = torch.where(live, weighted, 0).sum() / total
    return PairwiseOutput(
        loss, losses.detach(), metrics.pack(loss.detach(), objective.beta * score.detach(), values.detach(), counted, total)
    )


def _objective(function: str, objective: PairwiseObjective) -> None:
    if not isinstance(objective, PairwiseObjective):
        checks.fail(
            function, "objective", "a PairwiseObjective", objective, 'compose one, or take recipes.recipe("dpo").objective', error=TypeError
        )


def _given(function, objective, dtype, shape, device, ref, previous, lengths) -> list[Tensor | None]:
    """The tensors that go with the responses: there if and only if the objective reads them, without gradient."""
    expected = {
        "ref_log_probs": (ref, objective.needs_reference, "score.reference is not 0", "score the responses with the reference policy"),
        "previous_log_probs": (
            previous,
            objective.needs_previous,
            "score.previous is not 0",
            "score the responses with the previous iterate",
        ),
        "lengths": (lengths, objective.needs_lengths, "it divides by lengths", "pass sequence_log_probs(...).lengths"),
    }
    return [_only_if(function, name, shape, dtype, device, *about) for name, about in expected.items()]


def _per_pair(function, objective, dtype, shape, device, targets, weights) -> tuple[Tensor | None, Tensor | None]:
    why, fix = f"its link {type(objective.link).__name__} reads them", "pass one number a comparison"
    targets = _only_if(function, "targets", shape, dtype, device, targets, objective.needs_targets, why, fix)
    if weights is not None:
        checks.tensor(function, "weights", weights, shape=shape, dtypes=checks.FLOATS, device=device, fix="pass one weight a comparison")
        weights = constant(function, "weights", weights).to(dtype)
    return targets, weights


def _only_if(function, name, shape, dtype, device, value, needed: bool, why: str, fix: str) -> Tensor | None:
    if needed and value is None:
        checks.fail(function, name, f"given as {shape} float for this objective ({why})", None, fix)
    if not needed and value is not None:
        checks.fail(function, name, "None for this objective", value, f"leave it out: it would not be read (it is, where {why})")
    if value is None:
        return None
    checks.tensor(function, name, value, shape=shape, dtypes=checks.FLOATS, device=device, fix=fix)
    return constant(function, name, value).to(dtype)
