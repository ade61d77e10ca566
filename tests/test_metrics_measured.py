"""A metric that nobody measured is absent, never 0: in each loss, of no tokens at all, and after merging."""

import pytest
import torch

from gigpo_fast import metrics
from gigpo_fast.objective import EntropyBonus, KLPenalty, PolicyObjective
from gigpo_fast.pairwise import PairwiseObjective, PairwiseOutput, pairwise_loss, response_loss
from gigpo_fast.types import LossOutput
from tests.loss_helpers import make_batch, run_linear, run_policy

PLAIN, KL = PolicyObjective(), PolicyObjective(divergence=KLPenalty(0.1))
SUMS, MEANS = set(metrics.POLICY.sums + metrics.POLICY.maxima), set(metrics.POLICY.means)
OF_A_HEAD = {"skipped_fraction", "two_pass_fraction"}


def named(output):
    return output.metrics_as_floats()


@pytest.mark.parametrize("objective", [PLAIN, KL], ids=["plain", "kl"])
def test_losses_report_what_they_measured(objective):
    b = make_batch((3, 4))
    without = set() if objective is KL else {"ref_kl"}
    assert set(named(run_policy(b, objective).output)) == SUMS | MEANS - without - OF_A_HEAD - {"entropy"}
    assert set(named(run_policy(b, objective, entropy=b.entropy).output)) == SUMS | MEANS - without - OF_A_HEAD
    assert set(named(run_linear(b, objective).output)) == SUMS | MEANS - without


@pytest.mark.parametrize("run", [run_policy, run_linear])
def test_means_over_no_token_are_absent_and_sums_stay(run):
    found = named(run(make_batch((3, 4), trained=-1.0), PolicyObjective(entropy_bonus=EntropyBonus(0.1))).output)
    assert set(found) == SUMS and found["n_active"] == found["loss_sum"] == found["nonfinite_tokens"] == 0.0


def test_merging_keeps_what_one_part_measured():
    b, idle = make_batch((3, 4)), make_batch((3, 4), trained=-1.0)
    measured, other = run_linear(b, KL, denominator=5.0).output, run_policy(b, PLAIN, denominator=5.0).output
    merged, alone = named(LossOutput.merge([measured, other, run_policy(idle, PLAIN, denominator=5.0).output])), named(measured)
    assert all(merged[name] == alone[name] for name in ("ref_kl", "entropy", "skipped_fraction", "two_pass_fraction"))
    assert merged["n_active"] == 2 * alone["n_active"]
    assert "ref_kl" not in named(LossOutput.merge([other, other]))


def test_preferences():
    objective = PairwiseObjective()
    scores, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.5])
    pairs = lambda weight: pairwise_loss(  # noqa: E731
        scores, torch.tensor([[0, 1]]), ref_log_probs=reference, weights=torch.tensor([weight]), objective=objective
    )
    single = response_loss(scores, torch.tensor([True, True]), ref_log_probs=reference, objective=objective)
    assert set(named(pairs(0.0))) == {"loss_sum", "n_pairs", "denominator"}
    assert set(named(single)) == {"loss_sum", "n_pairs", "denominator", "reward_chosen", "log_prob_chosen"}
    assert named(PairwiseOutput.merge([single, pairs(1.0), pairs(0.0)]))["accuracy"] == 1.0
