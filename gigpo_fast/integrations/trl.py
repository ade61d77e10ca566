"""TRL's GRPOTrainer with the fused head: the same losses, gradients and metrics, without logits and without a second pass over the head.

    from gigpo_fast.integrations.trl import FusedGRPOTrainer       # instead of: from trl import GRPOTrainer

TRL builds the batches, the model's inputs and the rewards; what changes is what is done with the last hidden state.
"""

import functools
import types
import warnings
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..logprob import linear_token_log_probs
from ..loss import linear_policy_loss, plan_tokens, rows_that_matter
from ..types import LossOutput
from . import trl_objective as config
from .transformers import add_head_call
from .trl_gigpo import GiGPOCredit

__all__ = ["FusedGRPOTrainer", "FusedPolicyLoss", "GiGPOCredit"]

TESTED = "1.16"
FusedGRPOTrainer: type  # made by __getattr__
_MODEL_INPUTS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes"),
    *("token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class FusedPolicyLoss:
    """The part of FusedGRPOTrainer that is ours: class FusedGRPOTrainer(FusedPolicyLoss, trl.GRPOTrainer).

    On-policy steps, TRL's default, take one pass over the head for loss and gradient (6NVH); what `unfused_because` names takes TRL's own
    formula over log-probs from the head in chunks (8NVH). `credit` adds GiGPO's step level. `row_metrics` False lets steps with old
    log-probs be fused too (off-policy ones, and all with vLLM's importance sampling correction) and leaves out the metrics that need
    every token's log-prob there: clip_ratio/low_min, high_max, cispo_clip_ratio, vespo/phi_seq_mean and, with a sequence ratio, all of
    clip_ratio. `skip_idle_rows` leaves rows that cannot change the gradient (zero advantage, no penalty) out of the transformer; the
    entropy metric is then that of the other rows. `chunk_bytes` as in `linear_policy_loss`. Settings that clash raise before anything is
    loaded, models that do not fit before the first step.
    """

    def __init__(
        self,
        *arguments: Any,
        credit: GiGPOCredit | None = None,
        row_metrics: bool = True,
        skip_idle_rows: bool = False,
        chunk_bytes: int | None = None,
        **keywords: Any,
    ) -> None:
        args = arguments[2] if len(arguments) > 2 else keywords.get("args")
        _check_class(type(self))
        if args is not None:
            _check_args(args, credit, row_metrics, skip_idle_rows)
        self.credit, self.row_metrics, self.skip_idle_rows, self.chunk_bytes = credit, row_metrics, skip_idle_rows, chunk_bytes
        super().__init__(*arguments, **keywords)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            name = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
            checks.fail(
                "FusedGRPOTrainer",
                "accelerator",
                "one process, or DistributedDataParallel",
                f"{name} and the fused head",
                "use GRPOTrainer with it; outside TRL, LinearPolicyLoss works under FSDP2",
            )
        if self.skip_idle_rows and self.aux_loss_enabled:
            got = f"a model whose router loss (coefficient {self.router_aux_loss_coef}) depends on every row"
            checks.fail("FusedGRPOTrainer", "skip_idle_rows", "False", got, "set router_aux_loss_coef=0, or leave rows in")
        for model in (self.model, self.ref_model):
            if model is not None:
                add_head_call(self.accelerator.unwrap_model(model))
        self.read_args()
        if self.unfused_because is not None:
            warnings.warn(f"FusedGRPOTrainer: loss and head are not fused: {self.unfused_because}", stacklevel=3)

    def read_args(self) -> None:
        """Make the objective that `self.args` asks for; call it again after changing them."""
        self.objective = config.objective_of(self.args, epsilon_low=self.epsilon_low, epsilon_high=self.epsilon_high)
        self.unfused_because = config.why_not_fused(self.args, row_metrics=self.row_metrics)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.credit is None:
            return output
        from accelerate.utils import gather_object

        mode = "train" if self.model.training else "eval"
        turns = gather_object(self.credit.turns(inputs, getattr(self, "environments", None)))
        iteration = self.state.global_step
        recorded = mode == "train" and self.credit.records(iteration)
        output["advantages"], met = self.credit.token_advantages(
            output["advantages"],
            _trained(output),
            turns,
            first_row=self.accelerator.process_index * len(inputs),
            group_size=self.num_generations if mode == "train" else self.num_generations_eval,
            scale="std" if self.args.scale_rewards == "group" else None,
            iteration=iteration,
            episodes=gather_object(output["advantages"].tolist()) if recorded else None,
        )
        self._metrics[mode]["gigpo/shared_states"].append(met)
        return output

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **keywords: Any) -> tuple:
        """TRL builds the model's inputs, for text and for images; only the call of the model is ours."""
        return super()._get_per_token_logps_and_entropies(functools.partial(self._score, model), *arguments, **keywords)

    def _score(self, model: Any, *, labels: Tensor, fused_lm_head: bool, output_router_logits: bool = False, **inputs: Any) -> Any:
        """What TRL's own fused head returns: log-prob and entropy of each label, 0 where it is -100."""
        labels = labels[:, 1:]
        places = (labels != -100).nonzero(as_tuple=True)  # waits for the device, so before the model's forward is queued there

        def head_call(hidden: Tensor, head: Any, auxiliary: Tensor | None) -> tuple:
            hidden = hidden[:, :-1]
            with self._head_precision(hidden):
                found = linear_token_log_probs(
                    self._head_input(hidden[places], head), head, labels[places], temperature=self.temperature, chunk_bytes=self.chunk_bytes
                )
            zeros = found.log_probs.new_zeros(labels.shape)
            return zeros.index_put(places, found.log_probs), zeros.index_put(places, found.entropy), auxiliary

        log_probs, entropy, auxiliary = model(**inputs, auxiliary=output_router_logits, head_call=head_call)
        return types.SimpleNamespace(log_probs=log_probs, entropy=entropy, aux_loss=auxiliary)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.unfused_because is not None:
            return super()._compute_loss(model, inputs)
        mode = "train" if self.model.training else "eval"
        accumulation = self.current_gradient_accumulation_steps if mode == "train" else 1
        mask, advantages = _trained(inputs), inputs["advantages"]
        advantages = (advantages[:, None] if advantages.dim() == 1 else advantages).expand(mask.shape)
        tokens_of_step = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":
            tokens_of_step = tokens_of_step * accumulation / self.args.steps_per_generation
        denominator = config.denominator_of(self.args.loss_type, mask, tokens_of_step, accumulation)
        batch = {**inputs, "mask": mask, "advantages": advantages}
        if self.skip_idle_rows and mode == "train":
            batch = self._rows_that_matter(batch)
        output, auxiliary = self._fused_loss(model, batch, denominator)
        loss = output.loss
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * auxiliary / accumulation
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(auxiliary).mean().item())
        self._log_fused(mode, output, inputs, mask)
        return loss

    def _fused_loss(self, model: Any, batch: dict[str, Any], denominator: Tensor) -> tuple[LossOutput, Tensor | None]:
        """Loss and gradients from inside the model's forward, where DistributedDataParallel and autocast expect them."""
        targets, found = batch["completion_ids"], []
        plan = plan_tokens(batch["mask"], batch["advantages"], objective=self.objective)  # waits for the device, as in _score
        # A row is one sequence, also where it is the only one and its turns have different advantages.
        rows = torch.arange(targets.shape[0], device=targets.device).unsqueeze(1).expand(targets.shape)

        def head_call(hidden: Tensor, head: Any, auxiliary: Tensor | None) -> tuple:
            hidden = hidden[:, -targets.shape[1] - 1 : -1]  # the positions that predict the completion
            with self._head_precision(hidden):
                output = linear_policy_loss(
                    self._head_input(hidden, head),
                    head,
                    targets,
                    batch["advantages"],
                    batch["mask"],
                    old_log_probs=batch.get("old_per_token_logps"),
                    ref_log_probs=batch["ref_per_token_logps"] if self.args.beta else None,
                    extras=config.extras_of(self.objective, batch),
                    sequence_ids=rows,
                    temperature=self.temperature,
                    objective=self.objective,
                    denominator=denominator,
                    plan=plan,
                    chunk_bytes=self.chunk_bytes,
                )
            return output, auxiliary

        def call(*, labels: Tensor, fused_lm_head: bool, output_router_logits: bool = False, **inputs: Any) -> Any:
            output, auxiliary = model(**inputs, auxiliary=output_router_logits, head_call=head_call)
            found.append(output)
            return types.SimpleNamespace(log_probs=output.loss.view(1, 1), aux_loss=auxiliary)

        _, _, auxiliary = super()._get_per_token_logps_and_entropies(
            call,
            torch.cat([batch["prompt_ids"], targets], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            targets.shape[1],
            compute_aux_loss=self.aux_loss_enabled,
            **{name: batch.get(name) for name in _MODEL_INPUTS},
        )
        return found[0], auxiliary

    def _rows_that_matter(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows that can change the loss, at least one: every process runs its forward once, however many of its rows matter."""
        images = [name for name in _MODEL_INPUTS if batch.get(name) is not None]
        if images:
            checks.fail("FusedGRPOTrainer", "skip_idle_rows", "False for batches with images", f"{images}", "leave rows in")
        rows = rows_that_matter(batch["mask"], batch["advantages"], objective=self.objective).nonzero().squeeze(1)
        rows = rows if rows.numel() else rows.new_zeros(1)
        size = batch["mask"].shape[0]
        of_rows = lambda value: isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size  # noqa: E731
        return {name: value[rows] if of_rows(value) else value for name, value in batch.items()}

    def _head_precision(self, hidden: Tensor) -> torch.autocast:
        """With cast_lm_head_to_fp32 the head runs outside autocast; otherwise autocast stays what it is."""
        kind = hidden.device.type
        return torch.autocast(kind, enabled=torch.is_autocast_enabled(kind) and not self.args.cast_lm_head_to_fp32)

    def _head_input(self, hidden: Tensor, head: Any) -> Tensor:
        return hidden.to(head.weight.dtype) if self.args.cast_lm_head_to_fp32 else hidden

    def _log_fused(self, mode: str, output: LossOutput, inputs: dict[str, Any], mask: Tensor) -> None:
        found = output.metrics_as_floats()
        log = self._metrics[mode]
        if self.args.beta:
            log["kl"].append(self._mean_over_tokens("ref_kl", found))
        log["entropy"].append(self._mean_over_tokens("entropy", found))
        if inputs.get("old_per_token_logps") is None:
            self._log_ratio_one(log, inputs["advantages"], mask)
        elif self.args.loss_type in config.CLIPPED and self.args.importance_sampling_level == "token":
            low, high = (self._mean_over_tokens(f"clip_fraction_{side}", found) for side in ("low", "high"))
            log["clip_ratio/low_mean"].append(low)
            log["clip_ratio/high_mean"].append(high)
            log["clip_ratio/region_mean"].append(low + high)

    def _mean_over_tokens(self, name: str, found: dict[str, float]) -> float:
        """The mean over the tokens of all processes, from this one's mean, which is absent where it has no trained token."""
        count = found["n_active"] if name in found else 0.0
        parts = torch.tensor([found.get(name, 0.0) * count, count], dtype=torch.float32, device=self.accelerator.device)
        totals = self.accelerator.reduce(parts, reduction="sum")
        return (totals[0] / totals[1].clamp(min=1.0)).item()

    def _log_ratio_one(self, log: dict[str, list], advantages: Tensor, mask: Tensor) -> None:
        """The clip metrics of a step in which every ratio is 1: they depend on the bounds and the sign of the advantage alone."""
        kind = self.args.loss_type
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        by_row = self.args.importance_sampling_level == "sequence" and advantages.shape[1] == 1
        count = mask.new_ones(mask.shape[0], 1) if by_row else mask  # what TRL averages over: rows, or tokens

        def mean(flags: Tensor) -> float:
            counted = torch.stack([(flags & count).sum(), count.sum()]).float()
            totals = self.accelerator.reduce(counted, reduction="sum")
            return (totals[0] / totals[1].clamp(min=1.0)).item()

        def of_rows(flags: Tensor) -> Tensor:  # NaN for a row without a token
            return self.accelerator.gather((flags & count).sum(1) / count.sum(1))

        if kind in config.CLIPPED:
            ratio = 1.0 if self.args.delta is None else min(1.0, self.args.delta)
            low = (advantages < 0) & (ratio < 1 - self.epsilon_low)
            high = (advantages > 0) & (ratio > 1 + self.epsilon_high)
            log["clip_ratio/low_mean"].append(mean(low))
            log["clip_ratio/high_mean"].append(mean(high))
            log["clip_ratio/region_mean"].append(mean(low | high))
            low, high = of_rows(low), of_rows(high)
            log["clip_ratio/low_min"].append(low[~low.isnan()].min().item() if not low.isnan().all() else float("nan"))
            log["clip_ratio/high_max"].append(high[~high.isnan()].max().item() if not high.isnan().all() else float("nan"))
        elif kind == "cispo":
            log["cispo_clip_ratio"].append(mean((advantages > 0) & (self.epsilon_high < 1)))
        elif kind == "vespo":
            log["vespo/phi_seq_mean"].append(1.0)  # the weight is normalised to 1 at ratio 1


def _trained(inputs: dict[str, Any]) -> Tensor:
    """(B, T) bool: the completion without what tools and the environment wrote."""
    mask = inputs["completion_mask"] if "tool_mask" not in inputs else inputs["completion_mask"] * inputs["tool_mask"]
    return mask.bool()


def _check_class(kind: type) -> None:
    import trl

    if trl.__version__.rpartition(".")[0] != TESTED:
        raise ImportError(
            f"FusedGRPOTrainer: trl must be {TESTED}, got {trl.__version__}; it replaces parts of GRPOTrainer that change between versions "
            f"(pip install 'trl=={TESTED}.*')"
        )
    own = kind.__mro__.index(FusedPolicyLoss)
    for other in kind.__mro__[own + 1 :]:
        if other is not trl.GRPOTrainer and issubclass(other, trl.GRPOTrainer):
            checks.fail(
                "FusedGRPOTrainer",
                "the other base class",
                "GRPOTrainer itself",
                f"{other.__name__} and FusedGRPOTrainer",
                "both replace the loss: use one of them",
                error=TypeError,
            )


def _check_args(args: Any, credit: GiGPOCredit | None, row_metrics: bool, skip_idle_rows: bool) -> None:
    function = "FusedGRPOTrainer"
    config.check_loss_type(function, args.loss_type)
    if args.use_liger_kernel:
        checks.fail(
            function,
            "args.use_liger_kernel",
            "False",
            "use_liger_kernel=True and FusedGRPOTrainer, two fused kernels for one model",
            "switch one of them off",
        )
    if credit is not None:
        if args.scale_rewards not in ("group", "none"):
            got = f"scale_rewards={args.scale_rewards!r} and credit=GiGPOCredit(...)"
            checks.fail(
                function,
                "args.scale_rewards",
                '"group" or "none"',
                got,
                "the step level is normalised within a state's group or not at all",
            )
        if args.multi_objective_aggregation != "sum_then_normalize":
            got = f"multi_objective_aggregation={args.multi_objective_aggregation!r} and credit=GiGPOCredit(...)"
            checks.fail(function, "args.multi_objective_aggregation", '"sum_then_normalize"', got, "sum the rewards first")
        if credit.record is not None and args.steps_per_generation * args.num_iterations < args.gradient_accumulation_steps:
            got = f"{args.steps_per_generation}, so several generation batches in one optimiser step and one file of records"
            checks.fail(function, "args.steps_per_generation", "that of one optimiser step", got, "leave it out, or record=None")
    reason = config.why_not_fused(args, row_metrics=row_metrics)
    if skip_idle_rows and reason is not None:
        checks.fail(function, "skip_idle_rows", "False where head and loss are not fused", f"True, but {reason}", "switch one of them off")


def __getattr__(name: str) -> Any:
    """FusedGRPOTrainer is made when it is asked for: importing this module imports no trl."""
    if name != "FusedGRPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trl import GRPOTrainer

    made = types.new_class(
        name, (FusedPolicyLoss, GRPOTrainer), {}, lambda body: body.update(__module__=__name__, __doc__=FusedPolicyLoss.__doc__)
    )
    globals()[name] = made
    return made
