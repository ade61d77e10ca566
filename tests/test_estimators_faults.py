"""The estimators refuse what they cannot mean, name it, and never make a host wait for a device."""

import pytest
import torch

from gigpo_fast import advantage, reward, validation
from gigpo_fast.advantage import GroupStatistics, Whitening

ROW, IDS = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
TOKENS, MASK = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
NAN = torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 0.0]])

MESSAGES = [
    (lambda: advantage.normalise(ROW, IDS, mean_over="task"), r"normalise: mean_over must be 'group', 'batch' or None, got 'task'"),
    (lambda: advantage.normalise(ROW), r"normalise: group must be the group of each row for a level of 'group', got None; pass group"),
    (lambda: advantage.normalise(ROW, IDS, statistics="roll"), r"normalise: statistics must be a GroupStatistics, got 'roll'"),
    (lambda: advantage.group_moments(ROW, IDS, ddof=2), r"group_moments: ddof must be 0 or 1, got 2"),
    (lambda: advantage.opo_advantages(ROW, torch.tensor([1, 2, -3, 0]), IDS), r"opo_advantages: lengths must be >= 0, got a negative one in rows 2"),
    (lambda: advantage.opo_advantages(ROW, torch.zeros(3), IDS), r"opo_advantages: lengths must be \(4,\), got \(3,\) float32"),
    (lambda: advantage.gpg_advantages(ROW, IDS, rescale="all"), r"gpg_advantages: rescale must be None or 'informative_groups' or"),
    (lambda: advantage.gpg_advantages(ROW, IDS, normaliser=0.0), r"gpg_advantages: normaliser must be a finite number > 0.0, got 0.0"),
    (lambda: advantage.gpg_advantages(ROW, IDS, singleton="one"), r"gpg_advantages: singleton must be 'zero' or 'raw', got 'one'"),
    (lambda: advantage.max_at_k_advantages(ROW, IDS, k=1), r"max_at_k_advantages: k must be an integer >= 2, got 1; k is how many"),
    (lambda: advantage.pass_at_k_advantages(ROW, IDS, k=None), r"pass_at_k_advantages: k must be an integer >= 1, got None"),
    (lambda: advantage.pass_at_k_advantages(ROW, IDS, k=2.0), r"pass_at_k_advantages: k must be an integer >= 1, got 2.0"),
    (lambda: advantage.rank_advantages(ROW, IDS, top=0), r"rank_advantages: top must be an integer >= 1, got 0; .* None is all"),
    (lambda: advantage.soft_values(ROW, IDS, temperature=0), r"soft_values: temperature must be a finite number > 0.0, got 0; A\*-PO takes 0.5"),
    (lambda: advantage.soft_baseline_advantages(ROW, IDS, shift=None), r"soft_baseline_advantages: shift must be a finite number, got None"),
    (lambda: advantage.maxrl_advantages(ROW, ROW), r"maxrl_advantages: group must be \(4,\) int64 .*got \(4,\) float32"),
    (lambda: advantage.scaled_leave_one_out_advantages(ROW, IDS, eps=-1.0), r"scaled_leave_one_out_advantages: eps must be a finite number >= 0.0"),
    (lambda: advantage.normalised_sum(ROW, IDS), r"normalised_sum: rewards must be \(any, any\), got \(4,\) float32; pass one column a reward"),
    (lambda: advantage.normalised_sum(torch.zeros(4, 2), IDS, weights=[1.0]), r"normalised_sum: weights must be \(2,\).*got \(1,\)"),
    (lambda: advantage.gdpo_advantages(torch.zeros(4, 2), IDS, whitening=None), r"gdpo_advantages: whitening must be a Whitening, got None"),
    (lambda: advantage.running_baseline_advantages(ROW, IDS, torch.zeros(0)), r"agent must be in \[0, 0\) for 0 baselines, got one outside in rows 0"),
    (lambda: advantage.running_baseline_advantages(ROW, IDS + 3, torch.zeros(2)), r"agent must be in \[0, 2\) for 2 baselines, got one outside"),
    (lambda: advantage.running_baseline_advantages(ROW, IDS, torch.zeros(1), decay=1.5), r"decay must be in \[0, 1\], got 1.5; 0.95 is usual"),
    (lambda: advantage.semantic_entropy(IDS, IDS, normalised=False), r"semantic_entropy: normalised must be True without log_probs, got False"),
    (lambda: advantage.hgpo_advantages(ROW, IDS, IDS, IDS, gamma=0.9, history=-1), r"hgpo_advantages: history must be an integer >= 0, got -1"),
    (lambda: advantage.tree_values(ROW, IDS - 1, depth=-1), r"tree_values: depth must be an integer >= 0, got -1"),
    (lambda: advantage.tree_values(ROW + torch.arange(4), torch.tensor([-1, 0, 1, 2]), depth=1), r"tree_values: depth must be the edges from root to"),
    (lambda: advantage.tree_values(ROW, IDS + 9, depth=1), r"tree_values: parent must be in \[-1, 4\), got a node outside in rows 0, 1, 2, 3"),
    (lambda: advantage.tree_advantages(ROW, IDS - 1, best_of=4, scale="std"), r"tree_advantages: scale must be None with best_of, got 'std'"),
    (lambda: advantage.combined_labels(), r"combined_labels: labels must be one label a row, or several"),
    (lambda: advantage.token_returns(TOKENS, TOKENS), r"token_returns: mask must be \(2, 3\) bool .*got \(2, 3\) float32"),
    (lambda: advantage.token_returns(torch.zeros(2, 4), MASK), r"token_returns: rewards must be \(2, 3\), got \(2, 4\) float32"),
    (lambda: advantage.token_returns(TOKENS, MASK, gamma=1.1), r"token_returns: gamma must be in \[0, 1\], got 1.1"),
    (lambda: advantage.token_returns(NAN, MASK), r"token_returns: rewards must be finite at trained tokens, got not finite at \[0, 1\]; mask such tokens out"),
    (lambda: advantage.token_returns(TOKENS[0], MASK[0]), r"token_returns: sequence_ids must be \(3,\) int64 for packed tokens, got None"),
    (lambda: advantage.token_returns(TOKENS, MASK, sequence_ids=TOKENS), r"token_returns: sequence_ids must be \(2, 3\) int64"),
    (lambda: advantage.turn_returns(TOKENS[None], MASK[None], gamma=1.0), r"turn_returns: mask must be \(B, T\), or \(N,\) for packed tokens, got \(1, 2, 3\)"),
    (lambda: advantage.gae_advantages(TOKENS, TOKENS, MASK, lam=1.5), r"gae_advantages: lam must be in \[0, 1\], got 1.5"),
    (lambda: advantage.gae_advantages(TOKENS, TOKENS, MASK, lam=TOKENS + 2), r"gae_advantages: lam must be in \[0, 1\], got numbers from 2.0 to 2.0"),
    (lambda: advantage.gae_advantages(TOKENS, TOKENS, MASK, lam=TOKENS, carry=False), r"gae_advantages: lam must be a number with carry=False"),
    (lambda: advantage.gae_advantages(TOKENS, TOKENS, MASK, final_values=torch.zeros(3)), r"final_values must be \(2,\), got \(3,\) float32; one value a row"),
    (lambda: advantage.gae_advantages(TOKENS, NAN, MASK), r"gae_advantages: values must be finite at trained tokens"),
    (lambda: advantage.length_adaptive_lambda(MASK, alpha=0.0), r"length_adaptive_lambda: alpha must be a finite number > 0.0"),
    (lambda: advantage.whiten(TOKENS, MASK, statistics=GroupStatistics()), r"whiten: statistics must be a Whitening"),
    (lambda: advantage.whiten(TOKENS, MASK, counted=MASK[0]), r"whiten: counted must be \(2, 3\), got \(3,\) bool"),
    (lambda: Whitening(eps_in="std"), r"Whitening: eps_in must be 'variance' or 'deviation' or 'floor', got 'std'"),
    (lambda: Whitening(eps=0.0), r"Whitening: eps must be a finite number > 0.0, got 0.0"),
    (lambda: advantage.remax_advantages(TOKENS, torch.zeros(3), MASK), r"remax_advantages: baselines must be \(2,\), got \(3,\) float32; one greedy score"),
    (
        lambda: advantage.optimal_token_baseline_advantages(TOKENS[0], IDS[:3], TOKENS[0], TOKENS[0], MASK[0]),
        r"count_trained_tokens must be True with sequence_ids, got False; packed tokens have no columns",
    ),
    (lambda: advantage.low_probability_cuts(TOKENS, MASK, every=0), r"low_probability_cuts: every must be an integer >= 1, got 0"),
    (lambda: advantage.segment_advantages(TOKENS, MASK, torch.zeros(3), MASK), r"segment_advantages: scores must be \(2,\), got \(3,\) float32"),
    (lambda: reward.cosine_length(ROW, ROW, max_length=9), r"cosine_length: correct must be \(4,\) bool, got \(4,\) float32; say what counts"),
    (lambda: reward.soft_overlong(ROW, max_length=9, buffer=0), r"soft_overlong: buffer must be a finite number > 0.0, got 0"),
    (lambda: reward.soft_length(ROW, torch.zeros(3)), r"soft_length: budget must be \(4,\)"),
    (lambda: reward.weighted_sum(torch.full((4, 2), float("nan"))), r"weighted_sum: rewards must be finite where scored, got not finite in rows 0, 1, 2, 3"),
    (lambda: reward.weighted_sum(ROW), r"weighted_sum: rewards must be \(any, any\)"),
    (lambda: reward.cost_penalty(ROW, ROW, IDS, weights=[1.0]), r"cost_penalty: costs must be \(4, any\), got \(4,\) float32"),
    (lambda: reward.tool_cost(ROW, max_calls=0), r"tool_cost: max_calls must be a finite number > 0, got 0"),
    (lambda: reward.ensemble_mean(torch.zeros(0, 4)), r"ensemble_mean: scores must be at least one model's"),
    (lambda: reward.ensemble_uncertainty(torch.zeros(2, 4), coefficient=1.0, ddof=2), r"ensemble_uncertainty: ddof must be 0 or 1, got 2"),
    (lambda: reward.worst_population(torch.zeros(4, 2), temperature=0.0), r"worst_population: temperature must be a finite number > 0.0"),
    (lambda: reward.gated_bonus(ROW, ROW, ROW), r"gated_bonus: gate must be \(4,\) bool, got \(4,\) float32; say what counts"),
    (lambda: reward.kl_rewards(TOKENS, TOKENS, MASK, coefficient=0.1, estimator="k1"), r"kl_rewards: estimator must be a divergence estimator, got 'k1'"),
    (lambda: reward.kl_rewards(NAN, TOKENS, MASK, coefficient=0.1), r"kl_rewards: log_probs must be finite at trained tokens"),
    (lambda: reward.AdaptiveCoefficient(target=0.0), r"AdaptiveCoefficient: target must be a finite number > 0.0, got 0.0"),
    (lambda: reward.running_scale(ROW, None), r"running_scale: state must be RunningMoments, got None; start with RunningMoments.empty\(\)"),
    (lambda: reward.running_scale(ROW, reward.RunningMoments.empty(), clip=0.0), r"running_scale: clip must be a finite number > 0.0"),
    (lambda: reward.difficulty_budget(ROW, ROW, thresholds=(5.0, 3.5)), r"difficulty_budget: thresholds must be two numbers that do not fall"),
    (lambda: reward.invalid_action_penalty(ROW, ROW), r"invalid_action_penalty: valid_action must be \(4,\) bool"),
]  # fmt: skip


@pytest.mark.parametrize(
    "call, message", MESSAGES, ids=[message.split(":")[0].strip("\\")[:40] + f"-{n}" for n, (_, message) in enumerate(MESSAGES)]
)
def test_messages(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("level", ["auto", "metadata"])
def test_no_value_is_read_back_from_a_device(level):
    """Meta tensors have no values: reading one raises, so on a GPU nothing would wait."""
    scores, ids = torch.zeros(6, device="meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    flag, wide = torch.zeros(6, dtype=torch.bool, device="meta"), torch.zeros(6, 2, device="meta")
    tokens, mask = torch.zeros(6, 5, device="meta"), torch.ones(6, 5, dtype=torch.bool, device="meta")
    empty = reward.RunningMoments.empty("meta")
    calls = [
        lambda: advantage.normalise(scores, ids, std_over="batch", leave_one_out=True, around_mean=True, valid=flag),
        lambda: advantage.scaled_leave_one_out_advantages(scores, ids, valid=flag),
        lambda: advantage.opo_advantages(scores, ids, ids),
        lambda: advantage.gpg_advantages(scores, ids),
        lambda: advantage.max_at_k_advantages(scores, ids, k=3, scale="std"),
        lambda: advantage.pass_at_k_advantages(scores, ids, k=3),
        lambda: advantage.maxrl_advantages(scores, ids),
        lambda: advantage.gdpo_advantages(wide, ids),
        lambda: advantage.rank_advantages(scores, ids, top=2),
        lambda: advantage.running_baseline_advantages(scores, ids, torch.zeros(3, device="meta")).advantages,
        lambda: advantage.semantic_entropy(ids, ids, log_probs=scores),
        lambda: advantage.hgpo_advantages(scores, ids, ids, ids, gamma=0.9, step=ids, episode_scores=scores).advantages,
        lambda: advantage.tree_advantages(advantage.tree_values(scores, ids, depth=3), ids),
        lambda: reward.cosine_length(flag, scores, max_length=9.0),
        lambda: reward.dast_length(flag, scores, ids),
        lambda: reward.group_length(flag, scores, ids),
        lambda: reward.tool_cost(ids, reward.fewest_calls(ids, flag, ids), max_calls=4),
        lambda: reward.cost_penalty(scores, wide, ids, weights=[0.1, 0.2]),
        lambda: reward.worst_population(wide),
        lambda: reward.gated_bonus(scores, scores, reward.all_of_group(flag, ids)),
        lambda: reward.running_scale(scores, empty)[0],
        lambda: reward.return_difference(scores, ids, trial=ids),
    ]
    token_calls = [
        lambda: advantage.token_returns(tokens, mask, gamma=0.9),
        lambda: advantage.turn_returns(tokens, mask, gamma=0.9, sequence_ids=mask.to(torch.int64)),
        lambda: advantage.gae_advantages(tokens, tokens, mask, lam=tokens, final_values=scores).advantages,
        lambda: advantage.reinforce_plus_plus_advantages(tokens, mask),
        lambda: advantage.reinforce_plus_plus_baseline_advantages(scores, ids, advantage.step_ids(mask), valid=flag),
        lambda: advantage.remax_advantages(tokens, scores, mask),
        lambda: advantage.optimal_token_baseline_advantages(tokens, ids, tokens, tokens, mask, count_trained_tokens=True),
        lambda: advantage.segment_advantages(tokens, advantage.low_probability_cuts(tokens, mask).after, scores, mask, start_values=scores),
        lambda: advantage.whiten(tokens, mask, counted=mask),
        lambda: reward.kl_rewards(tokens, tokens, mask, coefficient=0.1) + reward.score_at_last_token(scores, mask),
    ]
    with validation(level):
        for call in calls:
            assert call().shape == (6,)
        for call in token_calls:
            assert call().shape == (6, 5)
    with pytest.raises(RuntimeError):  # such tensors do tell
        bool(scores.sum())


def test_nothing_carries_a_gradient():
    leaf, tokens = torch.zeros(4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    assert not advantage.maxrl_advantages(leaf, IDS).requires_grad
    assert not advantage.gae_advantages(tokens, tokens, MASK).advantages.requires_grad
    assert not advantage.whiten(tokens, MASK).requires_grad
    assert not reward.kl_rewards(tokens, tokens, MASK, coefficient=0.1).requires_grad
    assert not advantage.optimal_token_baseline_advantages(tokens, [0, 0], tokens, tokens, MASK).requires_grad


def test_no_rows_and_no_tokens():
    none, nowhere = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)
    assert advantage.reinforce_plus_plus_advantages(none, nowhere).shape == (0, 3)
    assert advantage.gae_advantages(none, none, nowhere).returns.shape == (0, 3)
    wide, narrow = torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    assert advantage.turn_returns(wide, narrow, gamma=0.5).shape == (3, 0)
    assert advantage.gae_advantages(wide, wide, narrow).advantages.shape == (3, 0)
    assert advantage.segment_advantages(wide, narrow, torch.zeros(3), narrow).shape == (3, 0)
    assert not advantage.reinforce_plus_plus_advantages(TOKENS, ~MASK).any()
    label = torch.zeros(0, dtype=torch.int64)
    assert advantage.hgpo_advantages(torch.zeros(0), label, label, label, gamma=0.9).advantages.shape == (0,)
    assert advantage.running_baseline_advantages(torch.zeros(0), label, torch.ones(2)).baselines.tolist() == [1.0, 1.0]
    assert reward.worst_population(torch.zeros(0, 2)).shape == (0,)
