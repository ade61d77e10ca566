"""SPO: a segment of a response gets the difference of the values at its two ends; values come from sampling on from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_sum
from . import arguments
from .group import group_advantages
from .layout import backward_sum, forward_sum, layout, token_values
from .statistics import GroupStatistics
from .token_returns import masked_sum

# The authors' code: the population's deviation of the siblings, 1e-8 beside it.
SPO_TREE = GroupStatistics(count="row", ddof=0, eps=1e-8)


class CutPoints(NamedTuple):
    """Where a response is cut into segments."""

    after: Tensor  # (B, T) bool, a segment ends with this token
    start: Tensor  # (B,) bool, the first segment begins with the response: the value of the prompt is wanted


def low_probability_cuts(
    log_probs: Tensor,  # (B, T) float, of the sampled tokens under the policy that sampled them
    mask: Tensor,  # (B, T) bool
    *,
    threshold: float = 0.9,
    every: int = 5,
) -> CutPoints:
    """Cut before every `every`-th token that was not a foregone conclusion.

    The same, slowly: `[i - 1 for i in (log_probs[row].exp() < threshold).nonzero()][::every]`; -1 is `start`.

    Masked tokens are never cut at. Source: SPO (arXiv 2505.23564), section 4; probability 0.9 and every 5th are its defaults.
    """
    function = "low_probability_cuts"
    threshold = checks.number(function, "threshold", threshold, above=0.0, fix="0.9 is the paper's")
    every = checks.integer(function, "every", every, at_least=1, fix="5 is the paper's")
    checks.mask(function, mask)
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a response")
    low = mask & (token_values(function, "log_probs", log_probs, mask).exp() < threshold)
    chosen = low & ((low.cumsum(1) - 1) % every == 0)
    lines = layout(function, mask, None)
    next_trained = masked_sum(lines, chosen.to(torch.float64), 0.0, carry=True)
    return CutPoints(mask & (lines.following(next_trained) > 0), next_trained[:, :1].sum(1) > 0)


def segment_advantages(
    values: Tensor,  # (B, T) float, the value of the state after each token; read at cuts only
    cuts: Tensor,  # (B, T) bool, a segment ends with this token
    scores: Tensor,  # (B,) float, the score of each response: the value after its last trained token
    mask: Tensor,  # (B, T) bool
    *,
    start_values: Tensor | None = None,  # (B,) float, the value of the prompt
    start_known: Tensor | None = None,  # (B,) bool, rows whose prompt has a value; None: all, if start_values is given
) -> Tensor:  # (B, T) float32, float64 for float64 values; 0 where masked
    """The value at the end of a token's segment minus the value at its beginning.

    The same, slowly, for one row with cuts after tokens c_0 < c_1 < ...:

        bounds, known = [-1, *cuts, last_token], [start_value, *values[cuts], score]
        for begin, end, low, high in zip(bounds, bounds[1:], known, known[1:]):
            advantages[begin + 1 : end + 1] = high - low

    Without a value of the prompt the tokens up to the first cut get 0, and a response without cuts gets 0 throughout. SPO then
    zeroes confident tokens: `torch.where(log_probs.exp() > 0.9, 0, advantages)`.
    In float64, result rounded once. Carries no gradient. Where values are checked raises for numbers that are not finite.
    Source: SPO (arXiv 2505.23564), chain advantages.
    """
    function = "segment_advantages"
    checks.mask(function, mask)
    checks.tensor(function, "mask", mask, shape=(None, None), fix="one row a response")
    checks.mask(function, cuts, tuple(mask.shape), mask.device, name="cuts")
    rows = mask.any(1)
    cut = cuts & mask
    known = token_values(function, "values", values, cut)
    score = arguments.scores(function, "scores", scores, rows)
    if start_values is None:
        begin, has_begin = torch.zeros_like(score), torch.zeros_like(rows)
    else:
        has_begin = arguments.validity(function, start_known, "start_values", start_values) & rows
        begin = arguments.scores(function, "start_values", start_values, has_begin)
    later = mask.flip(1).cumsum(1).flip(1)
    last = mask & (later == 1)
    through = (~(cut | last)).to(torch.float64)
    through[:, -1:] = 0.0
    high = backward_sum(torch.where(last, score.unsqueeze(1), known), through)

    lines = layout(function, mask, None)
    first = torch.zeros_like(mask)
    first[:, :1] = True
    keep = (~(cut | first)).to(torch.float64)
    low = forward_sum(torch.where(first & ~cut, begin.unsqueeze(1), known), keep)
    has = forward_sum(torch.where(first & ~cut, has_begin.unsqueeze(1), cut).to(torch.float64), keep)
    low, has = lines.previous(low, begin.unsqueeze(1)), lines.previous(has, has_begin.unsqueeze(1).to(torch.float64))
    return torch.where(mask & (has > 0), high - low, 0.0).to(arguments.result_dtype(values, scores))


def tree_values(
    scores: Tensor,  # (V,) float, the score of each leaf; not read at inner nodes
    parent: Tensor,  # (V,) int64, the parent of each node, -1 at roots
    *,
    depth: int,
) -> Tensor:  # (V,) float32, float64 for float64 scores
    """The value of every node of a forest: a leaf's score, an inner node's mean of the values of its children.

    The same, slowly: `value(v) = scores[v] if v is a leaf else mean(value(c) for c with parent[c] == v)`

    `depth` is the number of edges from a root to the deepest leaf, so that nothing is read back from a device. The children count
    equally: where a branch ends early this is not the mean of the leaves. In float64, rounded once. Carries no gradient.
    Where values are checked raises for parents outside [-1, V) and a depth that is too small.
    Source: SPO's code (arXiv 2505.23564), tree advantages.
    """
    function = "tree_values"
    depth = checks.integer(function, "depth", depth, at_least=0, fix="count the edges from root to deepest leaf: 3 for a 6-6-6 tree")
    checks.tensor(function, "scores", scores, shape=(None,), fix="one score a node")
    nodes = scores.shape[0]
    fix = "number the nodes from 0 in any order; -1 at roots"
    checks.tensor(function, "parent", parent, shape=(nodes,), dtypes=(torch.int64,), device=scores.device, fix=fix)
    everyone = torch.ones(nodes, dtype=torch.bool, device=scores.device)
    if checks.values_wanted(parent):
        arguments.fail_outside(function, "parent", parent, None, -1, nodes, f"in [-1, {nodes})", "a node outside", fix)
    above = torch.where(parent < 0, nodes, parent)
    children = segment_sum(everyone.to(torch.float64), above, nodes + 1)
    inner = children[:nodes] > 0
    value = arguments.scores(function, "scores", scores, ~inner)
    for _ in range(depth):
        total = segment_sum(value, above, nodes + 1)
        value = torch.where(inner, total[:nodes] / children[:nodes].clamp(min=1.0), value)
    if nodes and checks.values_wanted(value):
        total = segment_sum(value, above, nodes + 1)
        again = torch.where(inner, total[:nodes] / children[:nodes].clamp(min=1.0), value)
        if not torch.equal(again, value):
            checks.fail(function, "depth", "the edges from root to deepest leaf", depth, "pass a larger depth")
    return value.to(arguments.result_dtype(scores))


def tree_advantages(
    values: Tensor,  # (V,) float: tree_values(...)
    parent: Tensor,  # (V,) int64, -1 at roots
    *,
    scale: str | None = None,
    statistics: GroupStatistics = SPO_TREE,
    best_of: int = 1,
) -> Tensor:  # (V,) of the edge into each node, 0 at roots; float32, float64 for float64 values
    """The value of a node minus that of its parent, over the deviation of its siblings with scale="std".

    The same, slowly: `group_advantages(values, parent)`, because a parent's value is its children's mean.

    best_of=k compares the chance that one of k continuations succeeds instead, 1 - (1 - value)^k (SPO's code adds k = 4 to decide
    which edges to drop); no scale then. Precision and errors as in `group_advantages`.
    Source: SPO (arXiv 2505.23564), tree advantages; scale="std" is the code's "grpo", None its "rloo".
    """
    function = "tree_advantages"
    best_of = checks.integer(function, "best_of", best_of, at_least=1, fix="1 compares values")
    checks.tensor(function, "parent", parent, dtypes=(torch.int64,), fix="the parent of each node, -1 at roots")
    child = parent >= 0
    if best_of == 1:
        return group_advantages(values, parent, scale=scale, statistics=statistics, valid=child)
    if scale is not None:
        checks.fail(function, "scale", "None with best_of", scale, "divide the result by what you mean")
    chance = 1.0 - (1.0 - arguments.scores(function, "values", values, torch.ones_like(child))) ** best_of
    return torch.where(child, chance - chance.index_select(0, parent.clamp(min=0)), 0.0).to(arguments.result_dtype(values))
