"""Plans that leave idle tokens out of the head: the same loss and gradients, and metrics of the others."""

import pytest
import torch

from gigpo_fast import validation
from gigpo_fast.loss import plan_tokens
from gigpo_fast.metrics import as_floats
from gigpo_fast.objective import Clip, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceRatio
from tests.loss_helpers import bare_objectives, change, covering_objectives, make_batch, run_linear, smallest_chunk
from tests.tolerance import assert_same_bits, error

OBJECTIVES = [
    *covering_objectives()[::5],
    *bare_objectives(),
    PolicyObjective(SequenceRatio(), Clip(), aggregation=SequenceMeanTokenMean()),
]


def idle_batch(seed: int = 0):
    """Advantages 0 in one whole row and at some tokens of another."""
    b = make_batch((5, 8), dtype=torch.float64, seed=seed)
    b.advantages[1], b.advantages[3, ::2] = 0, 0
    b.mask[1], b.mask[3, :4] = True, True
    return b


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_loss_and_gradients_are_the_same(number):
    objective, b = OBJECTIVES[number], idle_batch(number)
    for chunk in (None, smallest_chunk(b)):
        want = run_linear(b, objective, chunk_bytes=chunk)
        plan = plan_tokens(b.mask, b.advantages, objective=objective, score_idle=False)
        got = run_linear(b, objective, chunk_bytes=chunk, plan=plan)
        for name in ("loss", "hidden", "weight"):
            assert error(getattr(got, name), getattr(want, name)) < 1e-14, name


@pytest.mark.parametrize(
    "objective, left", [(PolicyObjective(), "tokens"), (OBJECTIVES[-1], "rows"), (PolicyObjective(divergence=KLPenalty(0.1)), "none")]
)
def test_what_is_left_out(objective, left):
    b = idle_batch()
    idle = {"tokens": b.mask & (b.advantages == 0), "rows": b.mask & (torch.arange(5) == 1)[:, None], "none": torch.zeros_like(b.mask)}[
        left
    ]
    plan = plan_tokens(b.mask, b.advantages, objective=objective, score_idle=False)
    assert set(plan.rows.tolist()) == set((b.mask & ~idle).flatten().nonzero().squeeze(1).tolist()) and plan.n_backward == len(plan.rows)
    whole, found = run_linear(b, objective).metrics, run_linear(b, objective, plan=plan).metrics
    assert as_floats(found)["n_active"] == int((b.mask & ~idle).sum())
    assert as_floats(found)["denominator"] == as_floats(whole)["denominator"]
    assert as_floats(found)["entropy"] == pytest.approx(float(b.entropy[b.mask & ~idle].mean()), rel=1e-6)
    if left != "none":  # not even NaN in an idle token is looked at
        broken = change(b, hidden=torch.where(idle[..., None], torch.nan, b.hidden))
        with validation("metadata"):
            assert_same_bits("loss", run_linear(broken, objective, plan=plan).loss, run_linear(b, objective, plan=plan).loss)


def test_everything_idle():
    b = idle_batch()
    b.advantages[:] = 0
    got = run_linear(b, PolicyObjective(), plan=plan_tokens(b.mask, b.advantages, objective=PolicyObjective(), score_idle=False))
    assert float(got.loss) == 0 and not got.hidden.any() and not got.weight.any()


def test_a_plan_of_other_advantages_is_refused():
    b = idle_batch()
    plan = plan_tokens(b.mask, b.advantages, objective=PolicyObjective(), score_idle=False)
    b.advantages[1, 0] = 1.0
    with pytest.raises(ValueError, match="plan must be made by plan_tokens .* got one that names other tokens or sequences"):
        run_linear(b, PolicyObjective(), plan=plan)
