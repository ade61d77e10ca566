"""Policy losses: what trainers import. From log-probs, or fused from hidden states and the head's weight.

All of them take ready advantages, one a token; advantages come from `gigpo_fast.advantage`, once per rollout batch.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import checks, values
from .distributed import Denominator
from .head import Head, check_hidden, ready_head, token_ids_checked
from .inference import takes_inference_tensors
from .keywords import LinearKeywords, TokenKeywords, takes
from .main_grad import check_weight_grad_out, refuse_other_gradients
from .objective import PolicyObjective
from .ops import passes
from .ops.linear_policy_loss import linear_policy_loss as _linear_policy_loss
from .owned_head import owned_head, refuse_rounded, remember_ties
from .plan import Plan, check_plan, plan_tokens, rows_that_matter
from .recipes import recipe
from .sharded_head import check_same_tokens
from .tokens import ready_tokens
from .transforms import transformed
from .types import LossOutput
from .unfused import loss_of_hidden, loss_of_log_probs

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Denominator",
    "Head",
    "LinearPolicyLoss",
    "LossOutput",
    "Plan",
    "PolicyLoss",
    "gigpo_loss",
    "grpo_loss",
    "linear_gigpo_loss",
    "linear_grpo_loss",
    "linear_policy_loss",
    "plan_tokens",
    "policy_loss",
    "rows_that_matter",
]

# Made once and here: a compiler that meets a named loss first could not trace how blocks are made.
_GRPO, _GIGPO = recipe("grpo").objective, recipe("gigpo").objective


@takes_inference_tensors
def policy_loss(
    log_probs: Tensor,  # (B, T) or (N,) float, log pi of the sampled tokens, nats
    advantages: Tensor,  # shape of log_probs, float
    mask: Tensor,  # shape of log_probs, bool, True = this token is trained
    *,
    old_log_probs: Tensor | None = None,  # shape of log_probs; None: on-policy, ratio exactly 1
    ref_log_probs: Tensor | None = None,  # shape of log_probs
    entropy: Tensor | None = None,  # shape of log_probs
    extras: dict[str, Tensor] | None = None,  # what the objective's blocks declare they read
    sequence_ids: Tensor | None = None,  # shape of log_probs, int64: what one sequence is; default the row
    objective: PolicyObjective,
    denominator: float | Tensor | Denominator | None = None,
) -> LossOutput:
    """The objective summed over trained tokens and divided by the denominator, from log-probs.

        ratio = (log_probs - old_log_probs).clamp(-20, 20).exp()              # for the default blocks
        loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
        (weights * torch.where(mask, loss, 0)).sum() / denominator

    `denominator` None is this call's own count, right for a full batch only; pass `distributed.global_denominator` for
    micro-batches or ranks. Untrained tokens cannot touch value, gradient or metrics, whatever is stored there. Arithmetic in
    fp32 (fp64 if log_probs is fp64). Raises on unequal shapes (nothing is broadcast), on a tensor an objective needs and
    lacks, and on one it would not read. Sources: see the blocks in `gigpo_fast.objective`.
    Differentiable in log_probs and entropy, also in forward mode and as often as one likes. Everything else is a constant: no gradient
    flows into advantages, old_log_probs, ref_log_probs, extras or denominator, and one that requires a gradient is warned of once.
    """
    if isinstance(mask, Tensor):
        checks.one_number_a_token("policy_loss", "log_probs", log_probs, tuple(mask.shape))
    checks.tensor("policy_loss", "log_probs", log_probs, dtypes=checks.FLOATS, fix="pass logprob.token_log_probs(...).log_probs")
    dtype = checks.compute_dtype(log_probs.dtype)
    tokens, denominator = ready_tokens(
        "policy_loss",
        objective,
        tuple(log_probs.shape),
        log_probs.device,
        dtype,
        advantages,
        mask,
        old_log_probs,
        ref_log_probs,
        extras,
        sequence_ids,
        denominator,
        densities=True,
    )
    if checks.values_wanted(log_probs, mask):
        values.check_log_probs("policy_loss", "log_probs", log_probs, mask, infinite=True, densities=True)
    if entropy is not None:
        checks.tensor(
            "policy_loss",
            "entropy",
            entropy,
            shape=tuple(log_probs.shape),
            dtypes=checks.FLOATS,
            device=log_probs.device,
            fix="pass logprob.token_log_probs(...).entropy",
        )
    elif objective.needs_entropy:
        checks.fail(
            "policy_loss",
            "entropy",
            f"given as {tuple(log_probs.shape)} for an objective with an entropy bonus",
            None,
            "pass logprob.token_log_probs(...).entropy",
        )
    entropy = None if entropy is None else entropy.to(dtype)
    return loss_of_log_probs(objective, tokens, mask, denominator, log_probs.to(dtype), entropy)


@takes_inference_tensors
def linear_policy_loss(
    hidden: Tensor,  # (B, T, H) or (N, H) float
    head: Tensor | Head,  # (V, H) weight, or a Head
    token_ids: Tensor,  # (B, T) or (N,) int64: the sampled tokens, at the position that predicts them
    advantages: Tensor,  # shape of token_ids, float
    mask: Tensor,  # shape of token_ids, bool
    *,
    old_log_probs: Tensor | None = None,  # shape of token_ids; None: on-policy
    ref_log_probs: Tensor | None = None,  # shape of token_ids
    extras: dict[str, Tensor] | None = None,  # shape of token_ids each
    sequence_ids: Tensor | None = None,  # shape of token_ids, int64
    temperature: float | Tensor = 1.0,  # or shape of token_ids
    objective: PolicyObjective,
    denominator: float | Tensor | Denominator | None = None,
    plan: Plan | None = None,
    chunk_bytes: int | None = None,
    invariant: bool = False,
    weight_grad_out: Tensor | None = None,  # (V, H) float32 (float64 for float64 weights): d_weight is added here, not to weight.grad
) -> LossOutput:
    """`policy_loss` of hidden states and head, fused: no N x V logits, gradients formed in the forward, idle tokens skipped.

        log_probs, entropy = logprob.token_log_probs((hidden @ weight.T + bias).float(), token_ids, temperature=temperature)
        policy_loss(log_probs, advantages, mask, entropy=entropy, ...)

    Untrained tokens never enter the head; trained tokens whose coefficient is exactly 0 cost no backward (on a GPU those
    that the plan knows beforehand). 6NVH operations (4NVH with a frozen head); sequences that an objective needs whole
    and that do not fit into a chunk take 8NVH off-policy (the metric two_pass_fraction says of how many tokens).
    Low-precision operands are multiplied into fp32 logits; all row arithmetic is fp32 (fp64 for fp64); d_weight is summed
    in fp32 and rounded once.
    Peak memory beside inputs: chunk_bytes (default 256 MiB on a CPU; on a GPU 1 GiB or what 4096 rows need) + N x H of
    d_hidden + V x H x 4 bytes of d_weight while it is summed (and the rounded copy for low precision); a sequence that takes
    two passes adds its tokens x H x (4 + the hidden's item size).
    `invariant`: every product with the head runs over one number of rows, so that a token's log-prob, entropy and d_hidden are the
    same bits whatever other tokens are in the batch (given chunk_bytes, the machine and the number of threads); d_weight is
    repeatable, never batch-invariant. `weight_grad_out`: Megatron's main_grad; the backward adds d_weight to it unrounded and
    weight.grad stays as it was. Not for weights that FSDP or DDP reduces, nor for tied ones.
    Under torch.compile lengths and the numbers of an objective do not recompile; a Python float `denominator` or `temperature`
    does for every new value, a tensor does not.
    Differentiable in hidden, weight and bias; what is constant in `policy_loss` is here, and temperature. Inside torch.func and forward
    mode (jvp, vmap, Hessian-vector products) it runs in plain torch over blocks of rows, at 8NVH and two to three times the time.
    Raises as `policy_loss` does, for a head that is sharded, quantised or of another dtype, on a backward through the backward outside of
    torch.func, and inside of it for a vocabulary-parallel head, `invariant` and `weight_grad_out`.
    """
    function = "linear_policy_loss"
    if not isinstance(token_ids, Tensor):
        checks.tensor(function, "token_ids", token_ids)
    shape = tuple(token_ids.shape)
    if len(shape) not in (1, 2):
        checks.fail(function, "token_ids", "(B, T) or packed (N,)", token_ids, "flatten further dimensions")
    ready = ready_head(function, hidden, head, temperature, shape)
    tokens, denominator = ready_tokens(
        function,
        objective,
        shape,
        hidden.device,
        ready.scale.dtype,
        advantages,
        mask,
        old_log_probs,
        ref_log_probs,
        extras,
        sequence_ids,
        denominator,
    )
    flat_ids = token_ids_checked(function, token_ids, shape, hidden.device, ready.vocabulary, mask)
    if ready.group_name:
        check_same_tokens(function, head.weight, ready.group_name, flat_ids, mask.reshape(-1))
    check_hidden(function, ready.hidden, mask)
    if plan is not None:
        check_plan(function, plan, mask, advantages, tokens.sequences, objective)
    grad = torch.is_grad_enabled()
    need = [
        grad and ready.hidden.requires_grad,
        grad and ready.weight.requires_grad,
        grad and ready.bias is not None and ready.bias.requires_grad,
    ]
    if weight_grad_out is not None:
        check_weight_grad_out(function, weight_grad_out, head)
    budget, invariant = passes.budget_of(function, chunk_bytes, ready.weight), checks.switch(function, "invariant", invariant)
    if transformed():
        how = {"plan": plan, "budget": budget, "invariant": invariant, "weight_grad_out": weight_grad_out}
        return loss_of_hidden(function, objective, ready, flat_ids, tokens, mask, denominator, **how)
    flat = lambda value: None if value is None else value.reshape(-1)  # noqa: E731
    sequences = tokens.sequences
    loss, metrics, *_ = _linear_policy_loss(
        ready.hidden,
        ready.weight,
        ready.bias,
        flat_ids,
        flat(mask),
        None if plan is None else plan.rows,
        0 if plan is None else plan.n_backward,
        None if plan is None else plan.boundaries,
        ready.scale,
        ready.tanh_in,
        flat(tokens.advantages),
        flat(tokens.old_log_probs),
        flat(tokens.ref_log_probs),
        flat(tokens.token_weights),
        None if sequences is None else sequences.ids,
        None if sequences is None else sequences.lengths,
        [flat(tokens.extras[name]) for name in objective.reads],
        denominator,
        objective.structure,
        objective.numbers,
        need,
        budget,
        invariant,
        None if weight_grad_out is None else weight_grad_out[: ready.weight.shape[0]],
        ready.group_name,
        list(ready.columns),
        "" if sequences is None else sequences.group_name,
    )
    if weight_grad_out is not None:
        refuse_other_gradients(function, loss, head)
    return LossOutput(loss, metrics)


@takes(policy_loss, "grpo")
def grpo_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[TokenKeywords]") -> LossOutput:
    """`policy_loss` with the objective of recipes.recipe("grpo"): token ratio, clip 0.2, token mean, no KL (arXiv 2402.03300)."""
    return policy_loss(log_probs, advantages, mask, objective=_GRPO, **keywords)


@takes(policy_loss, "gigpo")
def gigpo_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[TokenKeywords]") -> LossOutput:
    """`policy_loss` with the objective of recipes.recipe("gigpo") (arXiv 2505.10978, equation 9)."""
    return policy_loss(log_probs, advantages, mask, objective=_GIGPO, **keywords)


@takes(linear_policy_loss, "grpo")
def linear_grpo_loss(
    hidden: Tensor, head: Tensor | Head, token_ids: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[LinearKeywords]"
) -> LossOutput:
    """`linear_policy_loss` with the objective of recipes.recipe("grpo")."""
    return linear_policy_loss(hidden, head, token_ids, advantages, mask, objective=_GRPO, **keywords)


@takes(linear_policy_loss, "gigpo")
def linear_gigpo_loss(
    hidden: Tensor, head: Tensor | Head, token_ids: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[LinearKeywords]"
) -> LossOutput:
    """`linear_policy_loss` with the objective of recipes.recipe("gigpo")."""
    return linear_policy_loss(hidden, head, token_ids, advantages, mask, objective=_GIGPO, **keywords)


class PolicyLoss(nn.Module):
    """`policy_loss` as a module that holds the objective."""

    def __init__(self, objective: PolicyObjective) -> None:
        super().__init__()
        self.objective = objective

    @takes(policy_loss)
    def forward(self, log_probs: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[TokenKeywords]") -> LossOutput:
        return policy_loss(log_probs, advantages, mask, objective=self.objective, **keywords)


class LinearPolicyLoss(nn.Module):
    """`linear_policy_loss` as a module that owns the head, so that FSDP2 unshards the head around its forward.

        fully_shard(policy.loss)  # = LinearPolicyLoss(lm_head, objective); then fully_shard(policy). A tied head: docs/distributed.md

    `lm_head` is an nn.Linear (or anything with `weight` and `bias`); `logit_scale`, `softcap` and `vocab_size` are the model's,
    `group_name` a vocabulary-parallel head's, whose weight may be a DTensor on that group's mesh. Its inputs but the hidden states are
    float32 or float64: policies that cast inputs would round log-probs and denominators, so low precision is refused. Raises also where
    the head is still sharded when the forward runs, and where a wrapper separated it from the embedding it was tied to.
    """

    def __init__(
        self,
        lm_head: nn.Module,
        objective: PolicyObjective,
        *,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        vocab_size: int | None = None,
        group_name: str | None = None,
    ) -> None:
        super().__init__()
        self.lm_head, self.objective = lm_head, objective
        self.logit_scale, self.softcap, self.vocab_size, self.group_name = logit_scale, softcap, vocab_size, group_name
        remember_ties(self, lm_head)

    @takes(linear_policy_loss)
    def forward(
        self, hidden: Tensor, token_ids: Tensor, advantages: Tensor, mask: Tensor, **keywords: "Unpack[LinearKeywords]"
    ) -> LossOutput:
        refuse_rounded({"advantages": advantages, **keywords})
        features = {"logit_scale": self.logit_scale, "softcap": self.softcap, "vocab_size": self.vocab_size}
        head = owned_head(self, self.lm_head, self.group_name, **features)
        return linear_policy_loss(hidden, head, token_ids, advantages, mask, objective=self.objective, **keywords)
