"""Advantages: from rewards and labels, one value a step, and from there to tokens. Computed once per rollout batch, from whole groups."""

from ..arrays import take_arrays
from .actions import action_advantages
from .distances import success_distances
from .g2po import g2po_advantages
from .gae import GAEAdvantages, gae_advantages, length_adaptive_lambda
from .gigpo import gigpo_advantages
from .gpg import gpg_advantages
from .graph import graph_advantages
from .group import group_advantages, leave_one_out_advantages
from .hgpo import HGPO, hgpo_advantages
from .hindsight import hindsight_advantages
from .labels import combined_labels
from .leave_one_out import leave_one_out_moments, scaled_leave_one_out_advantages
from .maxrl import maxrl_advantages
from .multi_objective import gdpo_advantages, normalised_sum
from .normalise import GroupMoments, group_moments, normalise
from .opo import opo_advantages
from .optimal_baseline import optimal_token_baseline_advantages
from .pass_at_k import max_at_k_advantages, pass_at_k_advantages
from .rank import rank_advantages
from .reinforce_plus_plus import reinforce_plus_plus_advantages, reinforce_plus_plus_baseline_advantages
from .remax import remax_advantages
from .returns import discounted_returns
from .running_baseline import RunningBaseline, running_baseline_advantages
from .soft_baseline import soft_baseline_advantages, soft_values
from .spo import SPO_TREE, CutPoints, low_probability_cuts, segment_advantages, tree_advantages, tree_values
from .state_values import state_gae_advantages
from .statistics import AREAL, CORRECTED, OPENRLHF, ROLL, TRL, VERL, VERL_AGENT, GroupStatistics
from .token_returns import token_returns, turn_returns
from .tokens import step_ids, to_tokens
from .transitions import Transitions, transitions
from .turn_tokens import mt_grpo_advantages, turn_gae_advantages
from .turns import TurnGains, turn_baseline_advantages, turn_gain_advantages
from .uncertainty import semantic_entropy, uncertainty_weights
from .whitening import AREAL_WHITENING, OPENRLHF_WHITENING, VERL_WHITENING, Whitening, rescale, whiten

__all__ = [
    "AREAL",
    "AREAL_WHITENING",
    "CORRECTED",
    "HGPO",
    "OPENRLHF",
    "OPENRLHF_WHITENING",
    "ROLL",
    "SPO_TREE",
    "TRL",
    "VERL",
    "VERL_AGENT",
    "VERL_WHITENING",
    "CutPoints",
    "GAEAdvantages",
    "GroupMoments",
    "GroupStatistics",
    "RunningBaseline",
    "Transitions",
    "TurnGains",
    "Whitening",
    "action_advantages",
    "combined_labels",
    "discounted_returns",
    "g2po_advantages",
    "gae_advantages",
    "gdpo_advantages",
    "gigpo_advantages",
    "gpg_advantages",
    "graph_advantages",
    "group_advantages",
    "group_moments",
    "hgpo_advantages",
    "hindsight_advantages",
    "leave_one_out_advantages",
    "leave_one_out_moments",
    "length_adaptive_lambda",
    "low_probability_cuts",
    "max_at_k_advantages",
    "maxrl_advantages",
    "mt_grpo_advantages",
    "normalise",
    "normalised_sum",
    "opo_advantages",
    "optimal_token_baseline_advantages",
    "pass_at_k_advantages",
    "rank_advantages",
    "reinforce_plus_plus_advantages",
    "reinforce_plus_plus_baseline_advantages",
    "remax_advantages",
    "rescale",
    "running_baseline_advantages",
    "scaled_leave_one_out_advantages",
    "segment_advantages",
    "semantic_entropy",
    "soft_baseline_advantages",
    "soft_values",
    "state_gae_advantages",
    "step_ids",
    "success_distances",
    "to_tokens",
    "token_returns",
    "transitions",
    "tree_advantages",
    "tree_values",
    "turn_baseline_advantages",
    "turn_gae_advantages",
    "turn_gain_advantages",
    "turn_returns",
    "uncertainty_weights",
    "whiten",
]

take_arrays(globals())
