"""One small call of every public function, as a table: what test_process_state.py runs under every state a process can be in.

Inputs name their device and dtype, so that the table itself depends on no state.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import gigpo_fast
from gigpo_fast import advantage, anchor, distributed, logprob, loss, metrics, objective, packing, pairwise, recipes, reward, testing
from gigpo_fast.objective import EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, TokenMean
from tests.process_state_files import record

LEAVES = ("log_probs", "logits", "hidden", "weight", "entropy", "sequence_log_probs")  # what gradients are taken of
DOUBLE = torch.float64


class Inputs:
    """A batch of steps (S,) and of tokens (B, T), the same in every process."""

    def __init__(self, constants: contextlib.AbstractContextManager | None = None):
        """Everything but the leaves is made inside `constants`, for example torch.inference_mode()."""
        g = torch.Generator(device="cpu").manual_seed(7)
        normal = lambda *size, dtype=torch.float32: torch.randn(*size, generator=g, dtype=dtype, device="cpu")  # noqa: E731
        uniform = lambda *size: torch.rand(*size, generator=g, dtype=torch.float32, device="cpu")  # noqa: E731
        integers = lambda high, *size: torch.randint(high, size, generator=g, device="cpu")  # noqa: E731
        with constants or contextlib.nullcontext():
            steps = torch.arange(24, device="cpu")
            self.rewards, self.scores, self.success = normal(24), normal(24), steps // 3 % 3 == 0
            self.trajectory, self.group, self.anchor, self.action = steps // 3, steps // 12, integers(4, 24), integers(2, 24)
            self.valid, self.flags = steps != 5, uniform(24) > 0.4
            self.lengths, self.calls, self.parts = integers(90, 24) + 10, integers(4, 24), normal(24, 2)
            self.texts = [f"room {place} of {task}" for place, task in zip(self.anchor.tolist(), self.group.tolist())]
            self.names = [f"task {task}" for task in self.group.tolist()]
            self.ensemble, self.probability = normal(3, 24), 0.05 + 0.9 * uniform(24)
            self.parent = torch.tensor([-1, 0, 0, 1, 1, 2, 2, -1, 7, 7], device="cpu")
            self.leaf_scores = normal(10)
            self.mask, self.token_ids, self.advantages = uniform(4, 6) > 0.25, integers(12, 4, 6), normal(4, 6)
            self.old, self.ref = -uniform(4, 6) * 3, -uniform(4, 6) * 3
            self.token_rewards, self.values, self.squares = normal(4, 6), normal(4, 6), 0.1 + 0.5 * uniform(4, 6)
            self.rows = torch.arange(4, device="cpu") // 2
            self.sequences, self.bias, self.temperature = (
                (torch.arange(4, device="cpu")[:, None] // 2).expand(4, 6),
                normal(12),
                0.5 + uniform(4, 6),
            )
            self.top_two = torch.log(0.1 + 0.4 * uniform(4, 6, 2))
            self.pairs, self.sequence_ref = torch.tensor([(0, 1), (2, 3), (3, 0)], device="cpu"), -uniform(4) * 9
            self.states = integers(3, 24, 2)
            self.frozen = normal(12, 8)
            self.advantages = advantages = torch.where(self.mask, self.advantages, 0)
            assert advantages.device.type == "cpu"
        self.log_probs, self.entropy = -uniform(4, 6) * 3, uniform(4, 6)
        self.logits, self.hidden, self.weight = normal(4, 6, 12), normal(4, 6, 8), normal(12, 8)
        self.sequence_log_probs = -uniform(4) * 9
        for name in LEAVES:
            getattr(self, name).requires_grad_()

    def leaves(self) -> list[Tensor]:
        """The tensors that gradients are taken of."""
        return [getattr(self, name) for name in LEAVES]

    def lowered(self, dtype: torch.dtype) -> "Inputs":
        """What autocast means: operands of the head's product in another dtype; gradients are still those of the leaves."""
        leaves = self.leaves()
        self.hidden, self.weight, self.bias, self.frozen = (x.to(dtype) for x in (self.hidden, self.weight, self.bias, self.frozen))
        self.leaves = lambda: leaves
        return self

    @property
    def episode(self) -> tuple[Tensor, Tensor, Tensor]:
        """What advantages over anchors start from."""
        return self.rewards, self.trajectory, self.group

    @property
    def head(self) -> logprob.Head:
        """A head that uses every feature."""
        return logprob.Head(self.weight, self.bias, logit_scale=1.2, softcap=9.0, vocab_size=11)


def _objective() -> PolicyObjective:
    return PolicyObjective(divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.05), aggregation=SequenceMeanTokenMean())


def _policy(b: Inputs, function: Callable, **options: Any):
    return function(b.log_probs, b.advantages, b.mask, old_log_probs=b.old, **options)


def _linear(b: Inputs, function: Callable, head: Any = None, **options: Any):
    head = b.weight if head is None else head
    return function(b.hidden, head, b.token_ids % 11, b.advantages, b.mask, old_log_probs=b.old, **options)


def _extras(b: Inputs, wanted: PolicyObjective) -> dict[str, Tensor]:
    rows = torch.arange(24, device="cpu").view(4, 6)
    known = {
        "weights": b.squares, "rollout_log_probs": b.old - 0.1, "teacher_log_probs": b.ref, "previous_log_probs": b.old + 0.1,
        "kl_mask": b.mask, "clip_low": b.squares, "clip_high": b.squares, "scores": b.token_rewards, "group_spread": b.squares,
        "correct": b.sequences == 0, "correct_rate": b.squares, "group_ids": b.sequences, "segment_ids": rows // 3, "token_keys": rows * 7919,
        "position_ids": rows, "expected_discriminator": b.squares,
    }  # fmt: skip
    return {name: known[name] for name in wanted.reads}


def _all_recipes(b: Inputs) -> dict[str, Any]:
    """The objective of every recipe, fused and not."""
    found = {}
    for wanted, name in {recipes.recipe(name).objective: name for name in recipes.names()}.items():
        if isinstance(wanted, PolicyObjective):
            options = {"objective": wanted, "extras": _extras(b, wanted), "ref_log_probs": b.ref if wanted.needs_reference else None}
            entropy = b.entropy if wanted.needs_entropy else None
            found[name] = (_policy(b, loss.policy_loss, entropy=entropy, **options), _linear(b, loss.linear_policy_loss, **options))
        else:
            given = {"ref_log_probs": wanted.needs_reference, "previous_log_probs": wanted.needs_previous, "lengths": wanted.needs_lengths}
            tensors = {
                "ref_log_probs": b.sequence_ref,
                "previous_log_probs": b.sequence_ref - 0.1,
                "lengths": torch.ones_like(b.sequence_ref),
            }
            options = {key: tensors[key] for key, needed in given.items() if needed}
            if wanted.needs_targets:
                options["targets"] = b.probability[:3]
            found[name] = pairwise.pairwise_loss(b.sequence_log_probs, b.pairs, objective=wanted, **options)
    return found


def _modules(b: Inputs) -> tuple:
    head = torch.nn.utils.skip_init(torch.nn.Linear, 8, 12, bias=False, device="cpu", dtype=torch.float32)
    head.weight = torch.nn.Parameter(b.weight.detach().clone())
    fused = loss.LinearPolicyLoss(head, recipes.recipe("grpo").objective)
    output = fused(b.hidden, b.token_ids, b.advantages, b.mask, old_log_probs=b.old)
    plain = loss.PolicyLoss(recipes.recipe("gigpo", kl_coefficient=0.1).objective)
    return output, plain(b.log_probs, b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref)


def _merged(b: Inputs) -> tuple:
    outputs = [_policy(b, loss.grpo_loss, denominator=9.0) for _ in range(2)]
    return loss.LossOutput.merge(outputs), outputs[0].metrics_as_floats()


def _value(function: Callable) -> Callable:
    return lambda *tensors, **keywords: function(*tensors, **keywords).loss


A, R, D, P = advantage, reward, distributed, pairwise
CALLS: dict[str, Callable[[Inputs], Any]] = {
    # advantages of steps
    "advantage.combined_labels": lambda b: (A.combined_labels(b.group, b.anchor), A.combined_labels(b.names, b.anchor)),
    "advantage.discounted_returns": lambda b: A.discounted_returns(b.rewards, b.trajectory, gamma=0.9, valid=b.valid),
    "advantage.group_advantages": lambda b: (A.group_advantages(b.scores, b.group, scale="std"), A.group_advantages(b.scores > 0, b.names)),
    "advantage.group_moments": lambda b: A.group_moments(b.scores, b.group, valid=b.valid),
    "advantage.gigpo_advantages": lambda b: (
        A.gigpo_advantages(*b.episode, b.anchor, gamma=0.9, scale="std", valid=b.valid),
        A.gigpo_advantages(b.rewards.to(DOUBLE), b.texts, b.names, b.texts, gamma=0.9),
    ),
    "advantage.action_advantages": lambda b: A.action_advantages(*b.episode, b.anchor, b.action, shrinkage=0.5),
    "advantage.g2po_advantages": lambda b: A.g2po_advantages(*b.episode, b.anchor, success=b.success, step_penalties=b.scores),
    "advantage.graph_advantages": lambda b: A.graph_advantages(*b.episode, b.anchor, success=b.success),
    "advantage.hgpo_advantages": lambda b: A.hgpo_advantages(*b.episode, b.anchor, gamma=0.9),
    "advantage.hindsight_advantages": lambda b: A.hindsight_advantages(*b.episode, b.probability, smoothing=0.1),
    "advantage.state_gae_advantages": lambda b: A.state_gae_advantages(*b.episode, b.anchor),
    "advantage.transitions": lambda b: A.transitions(b.trajectory, b.group, b.anchor, success=b.success),
    "advantage.success_distances": lambda b: A.success_distances(A.transitions(b.trajectory, b.group, b.anchor, success=b.success)),
    "advantage.turn_baseline_advantages": lambda b: A.turn_baseline_advantages(*b.episode),
    "advantage.turn_gain_advantages": lambda b: A.turn_gain_advantages(*b.episode),
    "advantage.gdpo_advantages": lambda b: A.gdpo_advantages(b.parts, b.group, weights=[1.0, 0.3]),
    "advantage.normalised_sum": lambda b: A.normalised_sum(b.parts, b.group, weights=[1.0, 0.3]),
    "advantage.gpg_advantages": lambda b: A.gpg_advantages(b.scores, b.group),
    "advantage.leave_one_out_advantages": lambda b: A.leave_one_out_advantages(b.scores, b.group, valid=b.valid),
    "advantage.leave_one_out_moments": lambda b: A.leave_one_out_moments(b.scores, b.group),
    "advantage.scaled_leave_one_out_advantages": lambda b: A.scaled_leave_one_out_advantages(b.scores, b.group),
    "advantage.max_at_k_advantages": lambda b: A.max_at_k_advantages(b.scores, b.group, k=3),
    "advantage.pass_at_k_advantages": lambda b: A.pass_at_k_advantages(b.flags, b.group, k=3),
    "advantage.maxrl_advantages": lambda b: A.maxrl_advantages(b.flags, b.group),
    "advantage.normalise": lambda b: A.normalise(b.scores, b.group, std_over="batch"),
    "advantage.opo_advantages": lambda b: A.opo_advantages(b.scores, b.lengths, b.group),
    "advantage.soft_values": lambda b: A.soft_values(b.scores, b.group, temperature=0.5),
    "advantage.soft_baseline_advantages": lambda b: A.soft_baseline_advantages(b.scores, b.names, temperature=0.5, shift=-0.1),
    "advantage.rank_advantages": lambda b: A.rank_advantages(b.scores, b.group),
    "advantage.running_baseline_advantages": lambda b: A.running_baseline_advantages(b.scores, b.group, b.probability[:2]),
    "advantage.semantic_entropy": lambda b: (A.semantic_entropy(b.anchor, b.group), A.semantic_entropy(b.texts, b.names)),
    "advantage.uncertainty_weights": lambda b: A.uncertainty_weights(b.probability, torch.full_like(b.probability, 4)),
    "advantage.tree_values": lambda b: A.tree_values(b.leaf_scores, b.parent, depth=3),
    "advantage.tree_advantages": lambda b: A.tree_advantages(b.leaf_scores, b.parent, scale="std"),
    # advantages of tokens
    "advantage.step_ids": lambda b: (A.step_ids(b.mask), A.step_ids(b.mask, turns=True)),
    "advantage.to_tokens": lambda b: A.to_tokens(b.scores[:4], A.step_ids(b.mask)),
    "advantage.token_returns": lambda b: A.token_returns(b.token_rewards, b.mask, gamma=0.9),
    "advantage.turn_returns": lambda b: A.turn_returns(b.token_rewards, b.mask, gamma=0.9),
    "advantage.gae_advantages": lambda b: A.gae_advantages(b.token_rewards, b.values, b.mask, gamma=0.9, lam=0.8),
    "advantage.turn_gae_advantages": lambda b: A.turn_gae_advantages(
        b.token_rewards, b.values, b.mask, A.step_ids(b.mask, turns=True), lam=0.8
    ),
    "advantage.mt_grpo_advantages": lambda b: A.mt_grpo_advantages(b.scores[:4], b.scores[4:8], b.rows, b.mask, b.calls[:4]),
    "advantage.length_adaptive_lambda": lambda b: A.length_adaptive_lambda(b.mask, alpha=0.4),
    "advantage.low_probability_cuts": lambda b: A.low_probability_cuts(b.old, b.mask, every=2),
    "advantage.segment_advantages": lambda b: A.segment_advantages(
        b.values, A.low_probability_cuts(b.old, b.mask, every=2).after, b.scores[:4], b.mask
    ),
    "advantage.optimal_token_baseline_advantages": lambda b: A.optimal_token_baseline_advantages(
        b.token_rewards, b.rows, b.old, b.squares, b.mask
    ),
    "advantage.reinforce_plus_plus_advantages": lambda b: A.reinforce_plus_plus_advantages(b.token_rewards, b.mask),
    "advantage.reinforce_plus_plus_baseline_advantages": lambda b: A.reinforce_plus_plus_baseline_advantages(
        b.scores[:4], b.rows, A.step_ids(b.mask)
    ),
    "advantage.remax_advantages": lambda b: A.remax_advantages(b.token_rewards, b.scores[:4], b.mask),
    "advantage.rescale": lambda b: A.rescale(b.token_rewards, b.mask),
    "advantage.whiten": lambda b: A.whiten(b.token_rewards, b.mask),
    # anchors
    "anchor.group_ids": lambda b: (anchor.group_ids(b.names), anchor.group_ids(b.group), anchor.group_ids([(1, "a"), (1, "b"), (1, "a")])),
    "anchor.group_states": lambda b: (
        anchor.group_states(b.texts, b.names),
        anchor.group_states(b.states, b.group, valid=b.valid),
        anchor.group_states([(1, 2.0), {"a": 1}, (1, 2.0)]),
        anchor.group_states(b.texts, key=anchor.normalise.digits()),
        anchor.group_states((b.states.reshape(-1), torch.arange(0, 49, 2, device="cpu"))),
        anchor.group_states([3, 5, 3]),
    ),
    "anchor.group_similar_states": lambda b: anchor.group_similar_states(b.texts, b.names, threshold=0.8),
    "anchor.diagnose": lambda b: anchor.diagnose(
        b.texts, b.group, trajectory=b.trajectory, advantages=A.gigpo_advantages(*b.episode, b.anchor, gamma=0.9)
    ),
    "anchor.compare_states": lambda b: anchor.compare_states(
        {"text": b.texts, "number": b.anchor}, b.group, trajectory=b.trajectory, action=b.action
    ),
    # log-probs
    "logprob.token_log_probs": lambda b: logprob.token_log_probs(b.logits, b.token_ids, temperature=b.temperature, softcap=9.0),
    "logprob.token_statistics": lambda b: logprob.token_statistics(b.logits, b.token_ids, temperature=0.7),
    "logprob.linear_token_log_probs": lambda b: (
        logprob.linear_token_log_probs(b.hidden, b.head, b.token_ids % 11, temperature=0.7),
        logprob.linear_token_log_probs(b.hidden, b.frozen, b.token_ids, chunk_bytes=300_000),
    ),
    "logprob.linear_token_statistics": lambda b: logprob.linear_token_statistics(b.hidden, b.weight, b.token_ids),
    # losses
    "loss.policy_loss": lambda b: _policy(b, loss.policy_loss, ref_log_probs=b.ref, entropy=b.entropy, objective=_objective()),
    "loss.linear_policy_loss": lambda b: (
        _linear(b, loss.linear_policy_loss, b.head, ref_log_probs=b.ref, temperature=b.temperature, objective=_objective()),
        _linear(b, loss.linear_policy_loss, b.frozen, objective=recipes.recipe("gspo").objective, invariant=True),
        _linear(
            b,
            loss.linear_policy_loss,
            objective=PolicyObjective(),
            plan=loss.plan_tokens(b.mask, b.advantages, objective=PolicyObjective()),
        ),
    ),
    "loss.grpo_loss": lambda b: _policy(b, loss.grpo_loss),
    "loss.gigpo_loss": lambda b: _policy(b, loss.gigpo_loss, denominator=9.0),
    "loss.linear_grpo_loss": lambda b: _linear(b, loss.linear_grpo_loss),
    "loss.linear_gigpo_loss": lambda b: _linear(b, loss.linear_gigpo_loss, denominator=9.0),
    "loss.plan_tokens": lambda b: loss.plan_tokens(b.mask, b.advantages, objective=_objective()),
    "loss.rows_that_matter": lambda b: loss.rows_that_matter(b.mask, b.advantages, objective=PolicyObjective()),
    "loss modules": _modules,
    "loss.LossOutput": _merged,
    # preferences
    "pairwise.pairwise_loss": lambda b: P.pairwise_loss(
        b.sequence_log_probs, b.pairs, ref_log_probs=b.sequence_ref, weights=b.probability[:3], objective=P.PairwiseObjective()
    ),
    "pairwise.response_loss": lambda b: P.response_loss(
        b.sequence_log_probs, b.rows == 0, ref_log_probs=b.sequence_ref, objective=P.PairwiseObjective()
    ),
    "pairwise.linear_pairwise_loss": lambda b: P.linear_pairwise_loss(
        b.hidden, b.head, b.token_ids % 11, b.mask, b.pairs, ref_log_probs=b.sequence_ref, objective=P.PairwiseObjective()
    ),
    "pairwise.sequence_log_probs": lambda b: P.sequence_log_probs(b.log_probs, b.mask, token_weights=b.squares),
    "pairwise.linear_sequence_log_probs": lambda b: P.linear_sequence_log_probs(
        b.hidden, b.weight, b.token_ids, b.mask, sequence_ids=b.sequences, sequences=2
    ),
    "pairwise.pseudo_rewards": lambda b: P.pseudo_rewards(b.sequence_ref, b.sequence_ref - 0.1, divergence=P.ForwardKL()),
    "pairwise.sorted_scores": lambda b: P.sorted_scores(b.sequence_log_probs, b.sequence_ref, b.pairs),
    "pairwise.all_pairs": lambda b: P.all_pairs(b.scores, b.group),
    "pairwise.halves": lambda b: P.halves(6),
    # rewards
    "reward.all_of_group": lambda b: R.all_of_group(b.flags, b.group),
    "reward.any_of_group": lambda b: R.any_of_group(b.flags, b.names),
    "reward.cosine_length": lambda b: R.cosine_length(b.flags, b.lengths, max_length=80),
    "reward.cost_penalty": lambda b: R.cost_penalty(b.rewards, b.parts.abs(), b.group, weights=[0.2, 0.4]),
    "reward.dast_length": lambda b: R.dast_length(b.flags, b.lengths, b.group),
    "reward.difficulty_budget": lambda b: R.difficulty_budget(b.calls, b.probability),
    "reward.ensemble_mean": lambda b: R.ensemble_mean(b.ensemble),
    "reward.ensemble_worst": lambda b: R.ensemble_worst(b.ensemble),
    "reward.ensemble_uncertainty": lambda b: R.ensemble_uncertainty(b.ensemble, coefficient=0.5),
    "reward.fewest_calls": lambda b: R.fewest_calls(b.calls, b.flags, b.group),
    "reward.gated_bonus": lambda b: R.gated_bonus(b.rewards, b.flags, b.flags),
    "reward.group_length": lambda b: R.group_length(b.flags, b.lengths, b.group),
    "reward.invalid_action_penalty": lambda b: R.invalid_action_penalty(b.flags, b.flags),
    "reward.kl_rewards": lambda b: R.kl_rewards(b.old, b.ref, b.mask, coefficient=0.1),
    "reward.normalised_sum": lambda b: R.normalised_sum(b.parts, b.group),
    "reward.remaining_length": lambda b: R.remaining_length(b.lengths, max_length=80),
    "reward.return_difference": lambda b: R.return_difference(b.rewards, b.group),
    "reward.running_scale": lambda b: R.running_scale(b.rewards, R.RunningMoments.empty(), center=True, clip=2.0),
    "reward.score_at_last_token": lambda b: R.score_at_last_token(b.scores[:4], b.mask),
    "reward.soft_length": lambda b: R.soft_length(b.lengths, R.difficulty_budget(b.calls, b.probability)),
    "reward.soft_overlong": lambda b: R.soft_overlong(b.lengths, max_length=80, buffer=20),
    "reward.tool_cost": lambda b: R.tool_cost(b.calls, max_calls=4),
    "reward.top_two_uncertainty": lambda b: R.top_two_uncertainty(b.top_two, b.mask),
    "reward.weighted_sum": lambda b: R.weighted_sum(b.parts, weights=[0.8, 0.2]),
    "reward.worst_population": lambda b: R.worst_population(b.parts, temperature=1.0),
    # of one process
    "distributed.global_denominator": lambda b: D.global_denominator(b.mask, aggregation=SequenceMeanTokenMean(), sequence_ids=b.sequences),
    "distributed.gather_rows": lambda b: D.gather_rows(b.scores, sum_gradients=False),
    "distributed.equal_row_counts": lambda b: D.equal_row_counts(b.flags),
    "distributed.with_all_rows": lambda b: D.with_all_rows(
        A.discounted_returns, {"rewards": b.rewards, "trajectory": b.trajectory}, gamma=0.9
    ),
    "rollouts.write": record,
    "rollouts.read": record,
    "packing.sequence_ids_of": lambda b: packing.sequence_ids_of(torch.tensor([0, 2, 5], device="cpu"), b.calls[:6]),
    "packing.sequence_ids_of_positions": lambda b: packing.sequence_ids_of_positions(b.calls),
    "recipes.recipe": _all_recipes,
    "objective.proximal_log_probs": lambda b: objective.proximal_log_probs(b.log_probs, b.old, b.token_ids, 5),
    "objective.with_value": lambda b: _policy(b, loss.policy_loss, objective=objective.with_value(PolicyObjective(), "surrogate.low", 0.1)),
    "testing.check_advantages": lambda b: str(testing.check_advantages(A.gigpo_advantages)),
    "testing.check_loss": lambda b: str(testing.check_loss(_value(loss.grpo_loss), dtypes=(torch.float32,))),
    "Aggregation.count": lambda b: (TokenMean().count(b.mask, None), objective.TokenSum().count(b.mask, None)),
}

# Public functions without a row, and why.
NO_ROW = {
    "distributed.head_of_dtensor": "takes a DTensor, which needs a process group",
    "recipes.names": "a list of names, without tensors",
    "recipes.register": "adds to the list of recipes",
    "validation": "a context manager",
    **{f"backend.{name}": "a name or a reason, without tensors" for name in ("choose", "interpreting", "native_library", "requested")},
    **{f"backend.{name}": "a name or a reason, without tensors" for name in ("use", "why_not_native", "why_not_triton")},
}


def public_functions() -> Iterator[str]:
    """module.function for every function that the package exports (classes are what they take and return)."""
    for module_name in gigpo_fast.__all__:
        module = getattr(gigpo_fast, module_name)
        if not inspect.ismodule(module):
            yield module_name
            continue
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in names:
            value = getattr(module, name)
            if module is recipes and name in recipes.names():
                continue  # the row of recipes.recipe calls them all
            if inspect.isfunction(value) and value.__module__.startswith("gigpo_fast"):
                yield f"{module_name}.{name}"


def flat(value: Any) -> list:
    """The tensors and plain values of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in flat(item)]
    return [repr(value)] if callable(value) and not isinstance(value, str) else [value]


def outcome(name: str, b: Inputs, around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext) -> list:
    """What a call returns, then its gradients, as detached copies; the call alone, not the backward, is made inside `around`."""
    with around():
        parts = flat(CALLS[name](b))
    tracked = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
    gradients: list = []
    if tracked:
        upstream = [torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype, device="cpu").view(part.shape) for part in tracked]
        gradients = list(torch.autograd.grad(tracked, b.leaves(), upstream, allow_unused=True))
    return [part.detach().clone() if isinstance(part, Tensor) else part for part in parts + gradients]


def measured(found: list) -> list:
    """The same without the share of tokens that were recomputed for gradients: metrics of a call that wants none have 0 there."""
    place = metrics.POLICY.names.index("two_pass_fraction")
    recomputed = torch.arange(metrics.SIZE, device="cpu") == place
    vector = lambda part: isinstance(part, Tensor) and part.shape == (metrics.SIZE,)  # noqa: E731
    return [part.masked_fill(recomputed, 0) if vector(part) else part for part in found]


def differences(found: list, expected: list) -> list[str]:
    """Where two outcomes are not the same bits, devices and dtypes."""
    if len(found) != len(expected):
        return [f"{len(found)} results in place of {len(expected)}"]
    return [
        f"result {place}: {one} in place of {other}" for place, (one, other) in enumerate(zip(found, expected)) if not _same(one, other)
    ]


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and (one == other or one != one)
    if one.dtype != other.dtype or one.device != other.device or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
