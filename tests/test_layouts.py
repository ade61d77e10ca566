"""One recorded batch in three layouts: one row a step, one row a trajectory with turns, packed. Equal advantages, equal loss, equal gradients."""

import functools
import gzip
import json
import pathlib
from types import SimpleNamespace

import pytest
import torch

from gigpo_fast import advantage, anchor
from gigpo_fast.head import Head
from gigpo_fast.loss import linear_policy_loss, plan_tokens, policy_loss, rows_that_matter
from gigpo_fast.objective import (
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenMean,
)
from tests.tolerance import error

ROLLOUTS = pathlib.Path(__file__).parent.parent / "examples" / "rollouts" / "frozenlake.jsonl.gz"
TASKS, HIDDEN, VOCABULARY = 2, 6, 17
OBJECTIVES = {
    "token mean": PolicyObjective(),
    "sequence means": PolicyObjective(aggregation=SequenceMeanTokenMean()),
    "sequence sums": PolicyObjective(surrogate=Reinforce(), aggregation=SequenceMeanTokenSum()),
    "sequence ratio": PolicyObjective(SequenceRatio(), Clip(0.1, 0.2), KLPenalty(0.05), None, EntropyBonus(0.01), SequenceMeanTokenMean()),
    "sequence ratio, stopped": PolicyObjective(
        SequenceRatio(stop_gradient_mean=True), Clip(dual=3.0), aggregation=SequenceMeanTokenSumNorm(12.0)
    ),
    "token ratio, kl": PolicyObjective(divergence=KLPenalty(0.05), aggregation=TokenMean()),
}


@functools.cache
def recorded() -> SimpleNamespace:
    """Steps of the first tasks, with GiGPO's advantages; every step has one to four action tokens with made-up numbers."""
    with gzip.open(ROLLOUTS, "rt", encoding="utf-8") as lines:
        steps = [record for record in map(json.loads, lines) if record["type"] == "step"]
    tasks = {name: number for number, name in enumerate(dict.fromkeys(step["task_id"] for step in steps))}
    steps = [step for step in steps if tasks[step["task_id"]] < TASKS]
    names = {name: number for number, name in enumerate(dict.fromkeys(step["traj_uid"] for step in steps))}
    trajectory = torch.tensor([names[step["traj_uid"]] for step in steps])
    group = torch.tensor([tasks[step["task_id"]] for step in steps])
    rewards = torch.tensor([step["reward"] for step in steps], dtype=torch.float64)
    anchors = anchor.group_states([step["obs"] for step in steps], group).ids
    found = advantage.gigpo_advantages(rewards, trajectory, group, anchors, gamma=0.95)
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (len(steps),), generator=g)
    n = int(lengths.sum())
    normal = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    tokens = SimpleNamespace(
        hidden=normal(n, HIDDEN), token_ids=torch.randint(VOCABULARY, (n,), generator=g), old=-2 + 0.2 * normal(n), ref=-2 + 0.2 * normal(n)
    )
    tokens.step = torch.repeat_interleave(torch.arange(len(steps)), lengths)
    return SimpleNamespace(
        trajectory=trajectory, advantages=found.advantages, lengths=lengths, tokens=tokens, weight=0.7 * normal(VOCABULARY, HIDDEN)
    )


def placed(place: torch.Tensor, shape: tuple[int, ...]) -> SimpleNamespace:
    """Tensors of a layout: `place` says where each token of the record stands; the rest is untrained and holds rubbish."""
    tokens = recorded().tokens

    def fill(value, rubbish):
        out = torch.full((*shape, *value.shape[1:]), rubbish, dtype=value.dtype).flatten(0, len(shape) - 1)
        out[place] = value
        return out.view(*shape, *value.shape[1:])

    batch = SimpleNamespace(place=place, hidden=fill(tokens.hidden, float("nan")), token_ids=fill(tokens.token_ids, -100),
                            old=fill(tokens.old, float("inf")), ref=fill(tokens.ref, float("nan")))  # fmt: skip
    batch.mask = fill(torch.ones(len(place), dtype=torch.bool), False)
    batch.trajectory = fill(recorded().trajectory[tokens.step], -1)
    batch.step = fill(tokens.step, -1)
    return batch


def positions() -> torch.Tensor:
    """Of each token within its step."""
    return torch.cat([torch.arange(int(length)) for length in recorded().lengths])


@functools.cache
def layouts() -> dict[str, SimpleNamespace]:
    r = recorded()
    step, at = r.tokens.step, positions()
    steps = len(r.lengths)
    rows = placed(step * 4 + at, (steps, 4))
    rows.step_ids = advantage.step_ids(rows.mask)

    # A conversation: before every turn two tokens of observation, which are not trained.
    starts, ends = torch.zeros(steps, dtype=torch.int64), {}
    for number in range(steps):
        name = int(r.trajectory[number])
        starts[number] = ends.get(name, 0) + 2
        ends[name] = int(starts[number] + r.lengths[number])
    width = max(ends.values()) + 3
    turns = placed(r.trajectory[step] * width + starts[step] + at, (len(ends), width))
    turns.step_ids = advantage.step_ids(turns.mask, turns=True)

    packed = placed(torch.arange(len(step)) + 5, (len(step) + 9,))
    packed.step_ids = packed.step
    return {"steps": rows, "turns": turns, "packed": packed}


def tokens_of(batch: SimpleNamespace, value: torch.Tensor) -> torch.Tensor:
    """The record's tokens out of a layout."""
    return value.flatten(0, batch.mask.dim() - 1)[batch.place]


def test_the_record_has_what_matters():
    r = recorded()
    assert int(r.trajectory.max()) + 1 == 8 * TASKS and len(r.lengths) > 50
    assert bool((r.advantages > 0).any()) and bool((r.advantages < 0).any()) and bool((r.advantages == 0).any())


def test_equal_advantages():
    r = recorded()
    want = r.advantages[r.tokens.step]
    for name, batch in layouts().items():
        found = advantage.to_tokens(r.advantages, batch.step_ids)
        assert torch.equal(tokens_of(batch, found), want), name
        assert torch.count_nonzero(found[~batch.mask]) == 0


def losses(batch, objective, unit, *, fused, planned=False):
    """(loss, gradient of hidden by token, gradient of the weight, metrics) of a layout, a sequence being a step or a trajectory."""
    r = recorded()
    hidden, weight = batch.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    A = advantage.to_tokens(r.advantages, batch.step_ids)
    keywords = {"old_log_probs": batch.old, "sequence_ids": getattr(batch, unit), "objective": objective}
    if objective.needs_reference:
        keywords["ref_log_probs"] = batch.ref
    if fused:
        plan = plan_tokens(batch.mask, A, objective=objective, sequence_ids=getattr(batch, unit)) if planned else None
        out = linear_policy_loss(hidden, Head(weight), batch.token_ids, A, batch.mask, plan=plan, **keywords)
    else:
        log_p = torch.log_softmax(torch.where(batch.mask.unsqueeze(-1), hidden, 0) @ weight.T, -1)
        log_probs = log_p.gather(-1, batch.token_ids.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        out = policy_loss(log_probs, A, batch.mask, entropy=-(log_p.exp() * log_p).sum(-1), **keywords)
    out.loss.backward()
    return out.loss.detach(), tokens_of(batch, hidden.grad), weight.grad, out.metrics_as_floats()


@pytest.mark.parametrize("unit", ["step", "trajectory"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_loss_and_gradients(name, unit):
    found = {
        (layout, fused): losses(batch, OBJECTIVES[name], unit, fused=fused)
        for layout, batch in layouts().items()
        for fused in (True, False)
    }
    want = found["steps", False]
    assert float(want[1].abs().max()) > 0
    for key, got in found.items():
        for ours, theirs in zip(got[:3], want[:3]):
            assert error(ours, theirs) <= 1e-14 * max(1.0, float(theirs.abs().max())), key
        for metric in ("n_active", "denominator", "clip_fraction_low", "clip_fraction_high", "approx_kl", "ref_kl", "ratio_max"):
            assert (metric in got[3]) == (metric in want[3])
            if metric in want[3]:  # what nobody measured is absent
                assert got[3][metric] == pytest.approx(want[3][metric], rel=1e-6, abs=1e-7), (key, metric)


def test_step_and_trajectory_are_different_units():
    """Otherwise the equalities above would say nothing about sequence_ids."""
    by_step, by_trajectory = (
        losses(layouts()["packed"], OBJECTIVES["sequence ratio"], unit, fused=True)[0] for unit in ("step", "trajectory")
    )
    assert error(by_step, by_trajectory) > 1e-4


def test_the_row_is_the_default_unit():
    r = recorded()
    for layout, unit in (("steps", "step"), ("turns", "trajectory")):
        batch = layouts()[layout]
        A = advantage.to_tokens(r.advantages, batch.step_ids)
        log_probs = torch.where(batch.mask, -2.0, 0.0).double()
        for objective in (PolicyObjective(SequenceRatio(), aggregation=SequenceMeanTokenMean()),):
            default, named = (policy_loss(log_probs, A, batch.mask, old_log_probs=batch.old, objective=objective, sequence_ids=ids).loss
                              for ids in (None, getattr(batch, unit)))  # fmt: skip
            assert error(default, named) < 1e-15


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plans_and_rows_that_matter_in_every_layout(name):
    objective, r = OBJECTIVES[name], recorded()
    for batch in layouts().values():
        want, got = (losses(batch, objective, "trajectory", fused=True, planned=planned) for planned in (False, True))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(got[:3], want[:3]))
    for layout in ("steps", "turns"):
        batch = layouts()[layout]
        keep = rows_that_matter(
            batch.mask, advantage.to_tokens(r.advantages, batch.step_ids), objective=objective, sequence_ids=batch.trajectory
        )
        gradient = torch.zeros(batch.mask.numel(), HIDDEN, dtype=torch.float64)
        gradient[batch.place] = losses(batch, objective, "trajectory", fused=True)[1]
        assert torch.count_nonzero(gradient.view(*batch.mask.shape, HIDDEN)[~keep]) == 0
        assert bool(keep.all()) or objective.zero_at_zero_advantage
