"""The fused head and objective: loss and gradients in one walk over the trained tokens, no N x V logits.

Per chunk: gather rows -> GEMM -> row kernel (log-prob, entropy) -> objective (value, c = dL/dlog_prob, e = dL/dentropy)
-> row kernel turns the logits into dlogits -> two GEMMs. That is 6NVH operations, because gradients form in the forward.
Sequences that do not fit into a chunk are scored first and recomputed (8NVH), unless every ratio is 1: then what a token
takes from the others is known beforehand.
"""

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..metrics import merge, pack
from ..objective.batch import TokenBatch
from ..objective.block import Scope
from ..objective.differentiate import Differentiated, differentiate, objective_from
from ..objective.policy import PolicyObjective
from ..plan import order_tokens
from .clip_twin import score_with_twin, twin_options
from .gemm import head_logits, logits_buffer
from .passes import Gradients, HeadTensors, ScoredRows, chunks_of, held_dtype, recompute_backward, score, split
from .rows import rows_for, scores_on_gpu_kernels


class FusedLoss:
    """One call's state: the tokens in plan order, and the gradients as they grow."""

    def __init__(
        self,
        objective: PolicyObjective,
        hidden: Tensor,
        head: HeadTensors,
        tokens: TokenBatch,
        token_ids: Tensor,
        scale: Tensor,
        rows: Tensor,
        n_backward: int,
        denominator: Tensor,
        need: list[bool],
        most: int,
    ) -> None:
        self.objective, self.hidden, self.head, self.denominator = objective, hidden, head, denominator
        self.tokens, self.token_ids, self.scale, self.rows, self.n_backward = tokens, token_ids, scale, rows, n_backward
        held = compute_dtype(hidden.dtype) if head.shards.group_name else held_dtype(hidden)  # the ranks' shares are still to be added
        self.d_hidden = torch.zeros_like(hidden, dtype=held) if need[0] else None
        self.gradients, self.need = Gradients(need), need
        self.most, self._buffer = most, None
        self.loss = hidden.new_zeros((), dtype=compute_dtype(hidden.dtype))
        self.metrics: list[Tensor] = []
        self.triton = scores_on_gpu_kernels(hidden.device)
        # Where every token of a stretch is trained, its hidden states are a view and need no gathering. Asking a GPU would wait for it.
        self.contiguous = not self.triton and hidden.device.type == "cpu" and rows.shape[0] > 0 and bool((rows.diff() == 1).all())
        self.twin = twin_options(objective) if self.triton and not head.shards.group_name else None

    def d_weight(self) -> Tensor | None:
        """(V, H) compute dtype, zeros if nothing was added; None if not wanted."""
        if self.need[1] and self.gradients.d_weight is None:
            self.gradients.d_weight = torch.zeros_like(self.head.weight, dtype=self.loss.dtype, memory_format=torch.contiguous_format)
        return self.gradients.d_weight

    def d_bias(self) -> Tensor | None:
        """(V,) compute dtype, zeros if nothing was added; None if not wanted."""
        if self.need[2] and self.gradients.d_bias is None:
            self.gradients.d_bias = torch.zeros_like(self.head.bias, dtype=self.loss.dtype)
        return self.gradients.d_bias

    def buffer(self) -> Tensor | None:
        """The memory that chunks share for their logits, made when first wanted."""
        if self._buffer is None:
            self._buffer = logits_buffer(max(min(self.most, self.rows.shape[0]), self.head.fixed_rows), self.head.weight)
        return self._buffer

    def one_pass(self, start: int, stop: int, unit: tuple[int, int] | None = None) -> None:
        """Tokens start .. stop of the plan: forward and backward from the same logits.

        They are complete in themselves, or, on-policy, part of `unit`, whose other tokens matter by their advantages alone.
        """
        hidden = self._hidden_of(start, stop)
        token_ids, scale = self.token_ids[start:stop], self.scale[start:stop]
        if self.twin is None:
            logits, log_probs, lse, entropy, *_ = score(hidden, token_ids, scale, self.head, self.buffer())
            c, e = self._evaluate(start, stop, log_probs, entropy, unit)
        else:
            logits = head_logits(hidden, self.head.weight, self.head.bias, self.buffer(), self.head.fixed_rows)
            batch = self.tokens.take(slice(start, stop))
            lse, entropy, result = score_with_twin(
                self.objective, self.twin, logits, token_ids, scale, self.head.tanh_in, batch, self.denominator
            )
            c, e = self._record(result)
        active, stop = self._active(c, e, start, min(stop, self.n_backward))
        if stop <= start or (active is not None and active.numel() == 0):
            return
        rows = ScoredRows(hidden, token_ids, scale, lse, entropy, c, e)
        rows = ScoredRows(*(tensor[: stop - start] if active is None else tensor.index_select(0, active) for tensor in rows))
        d_logits, factor = self.gradients.form(logits, rows, self.head, active)
        del logits
        d_hidden = self.gradients.add_chunk(d_logits, factor, rows.hidden, self.head)
        self._store(d_hidden, start, stop, active)

    def two_passes(self, start: int, stop: int, budget: int) -> None:
        """Tokens that need each other and do not fit into one chunk: score all, evaluate, recompute."""
        scored = [
            score(self._hidden_of(a, b), self.token_ids[a:b], self.scale[a:b], self.head, self.buffer())[1:4]
            for a, b in split(start, stop, self.most)
        ]
        none = (self.scale[:0], self.scale.new_empty((0, 2)), self.scale[:0])
        log_probs, lse, entropy = (torch.cat(parts) for parts in zip(none, *scored))
        c, e = self._evaluate(start, stop, log_probs, entropy)
        active, stop = self._active(c, e, start, min(stop, self.n_backward))
        if stop <= start:
            return
        self._buffer = None  # the recomputation has slabs of its own
        parts = (self.token_ids[start:stop], self.scale[start:stop], lse, entropy, c, e)
        parts = tuple(tensor[: stop - start] if active is None else tensor.index_select(0, active) for tensor in parts)
        rows = ScoredRows(self._hidden_of(start, stop, active), *parts)
        recomputed = torch.full_like(self.loss, float(rows.hidden.shape[0]))
        self.metrics.append(pack({}, {"two_pass_fraction": (recomputed, torch.zeros_like(recomputed))}, {}, recomputed))
        d_hidden = recompute_backward(rows, self.head, budget, self.need, d_weight=self.d_weight(), d_bias=self.d_bias())
        self._store(d_hidden, start, stop, active)

    def finished(self) -> "FusedLoss":
        """Merge what the chunks measured, and add what other ranks' columns give d_hidden."""
        self.metrics = [merge(self.metrics)]
        self._show_nan()
        self.head.shards.sum(self.d_hidden)
        return self

    def _show_nan(self) -> None:
        """One NaN in each gradient where the loss is NaN: of a token that has no backward, no gradient would tell."""
        broken = torch.isnan(self.loss)
        first = self.rows[:1]
        if self.d_hidden is not None:
            self.d_hidden.index_copy_(0, first, self.d_hidden.index_select(0, first).masked_fill(broken, float("nan")))
        for gradient in (self.d_weight(), self.d_bias()):
            if gradient is not None:
                gradient[:1].masked_fill_(broken, float("nan"))

    def _evaluate(
        self, start: int, stop: int, log_probs: Tensor, entropy: Tensor, unit: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        if unit is None:
            batch = self.tokens.take(slice(start, stop))._replace(log_probs=log_probs, entropy=entropy)
            return self._record(differentiate(self.objective, batch, self.denominator))
        first, last = unit
        part = slice(start - first, stop - first)
        scored = log_probs.new_zeros((2, last - first))  # any finite log-prob will do for the tokens around: their ratio is 1
        scored[:, part] = torch.stack([log_probs, entropy])
        batch = self.tokens.take(slice(first, last))._replace(log_probs=scored[0], entropy=scored[1])
        return self._record(differentiate(self.objective, batch, self.denominator, part))

    def _record(self, result: Differentiated) -> tuple[Tensor, Tensor]:
        self.loss = self.loss + result.loss
        self.metrics.append(result.metrics)
        return result.d_log_probs, result.d_entropy

    def _active(self, c: Tensor, e: Tensor, start: int, stop: int) -> tuple[Tensor | None, int]:
        """Rows (relative to start) whose coefficients are not both exactly 0, or None for all of start .. stop.

        Dropping rows before the GEMMs is free for the C++ and torch rows. Triton's would have to wait for the device.
        """
        if not any(self.need):
            return None, start
        if self.triton:
            return None, stop
        wanted = ((c != 0) | (e != 0))[: max(stop - start, 0)]  # NaN is not 0 and stays
        return (None, stop) if bool(wanted.all()) else (wanted.nonzero().squeeze(1), stop)

    def _places(self, start: int, stop: int, active: Tensor | None) -> Tensor:
        return self.rows[start:stop] if active is None else self.rows[start:stop].index_select(0, active)

    def _hidden_of(self, start: int, stop: int, active: Tensor | None = None) -> Tensor:
        if self.contiguous and active is None:
            return self.hidden[int(self.rows[start]) :][: stop - start]
        return self.hidden.index_select(0, self._places(start, stop, active))

    def _store(self, d_hidden: Tensor | None, start: int, stop: int, active: Tensor | None) -> None:
        if d_hidden is None:
            return
        if self.contiguous and active is None:
            self.d_hidden[int(self.rows[start]) :][: stop - start] = d_hidden
            return
        self.d_hidden.index_copy_(0, self._places(start, stop, active), d_hidden.to(self.d_hidden.dtype))


def run(
    hidden: Tensor,
    head: HeadTensors,
    token_ids: Tensor,
    mask: Tensor,
    rows: Tensor | None,
    n_backward: int,
    boundaries: Tensor | None,
    scale: Tensor,
    tokens: TokenBatch,
    denominator: Tensor,
    structure: str,
    numbers: Tensor,
    need: list[bool],
    budget: int,
    invariant: bool,
) -> FusedLoss:
    """Walk over a flat batch (everything (N, ...)); `rows` None makes the plan here."""
    rows_for(hidden.device)  # a path that cannot run says so before the first parallel loop, which would hang in a forked child
    objective = objective_from(structure, tuple(numbers.tolist()))
    if rows is None:
        rows, n_backward, boundaries = order_tokens(mask, tokens.advantages, tokens.sequences, objective)
    head, most = chunks_of("linear_policy_loss", head, budget, invariant)
    fused = FusedLoss(
        objective,
        hidden,
        head,
        _in_plan_order(tokens, rows),
        token_ids.index_select(0, rows) - head.shards.first_column,
        scale.index_select(0, rows),
        rows,
        n_backward,
        denominator,
        need,
        most,
    )
    if objective.scope == Scope.SEQUENCE and tokens.sequences.group_name:
        fused.two_passes(0, rows.shape[0], budget)  # all ranks evaluate all their tokens at once, or their collectives would not meet
        return fused.finished()
    for start, stop in _one_pass_chunks(objective, rows.shape[0], n_backward, boundaries, most):
        fused.one_pass(start, stop)
    for start, stop in _units_that_do_not_fit(objective, rows.shape[0], boundaries, most):
        if tokens.old_log_probs is None and objective.known_on_policy:
            for a, b in split(start, stop, most):
                fused.one_pass(a, b, (start, stop))
        else:
            fused.two_passes(start, stop, budget)
    if not fused.metrics:  # no trained token at all: the metrics of an empty batch
        fused._evaluate(0, 0, scale.new_empty(0), scale.new_empty(0))
    return fused.finished()


def _in_plan_order(tokens: TokenBatch, rows: Tensor) -> TokenBatch:
    return tokens._replace(log_probs=tokens.advantages, entropy=None).take(rows)  # log_probs are filled in chunk by chunk


def _one_pass_chunks(objective: PolicyObjective, n: int, n_backward: int, boundaries: Tensor | None, most: int) -> list[tuple[int, int]]:
    if objective.scope == Scope.TOKEN:
        return split(0, n_backward, most) + split(n_backward, n, most)
    if objective.scope == Scope.BATCH:
        return []
    chunks: list[tuple[int, int]] = []
    for start, stop in _pairs(boundaries):
        if stop - start > most:
            continue
        if chunks and chunks[-1][1] == start and stop - chunks[-1][0] <= most:
            chunks[-1] = (chunks[-1][0], stop)
        else:
            chunks.append((start, stop))
    return chunks


def _units_that_do_not_fit(objective: PolicyObjective, n: int, boundaries: Tensor | None, most: int) -> list[tuple[int, int]]:
    if objective.scope == Scope.TOKEN or n == 0:
        return []
    if objective.scope == Scope.BATCH:
        return [(0, n)]
    return [(start, stop) for start, stop in _pairs(boundaries) if stop - start > most]


def _pairs(boundaries: Tensor) -> list[tuple[int, int]]:
    at = boundaries.tolist()
    return list(zip(at, at[1:]))
