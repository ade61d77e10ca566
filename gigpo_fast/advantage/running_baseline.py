"""A baseline that remembers: each agent's exponentially weighted mean of the scores it has seen so far."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_sum, sort_rows
from . import arguments
from .layout import backward_sum


class RunningBaseline(NamedTuple):
    """Advantages, and the baselines to start the next batch from."""

    advantages: Tensor  # (S,)
    baselines: Tensor  # (A,) float64


def running_baseline_advantages(
    scores: Tensor,  # (S,) float, int or bool, in the order in which they were scored
    agent: Tensor,  # (S,) int64 in [0, A), whose baseline each row uses
    baselines: Tensor,  # (A,) float, from the last batch; zeros at the start
    *,
    decay: float = 0.95,
    valid: Tensor | None = None,  # (S,) bool
) -> RunningBaseline:
    """Score minus the agent's baseline, which is updated after use: b <- decay b + (1 - decay) score.

    The same, slowly:

        for i in range(S):
            advantages[i] = scores[i] - baselines[agent[i]]
            baselines[agent[i]] = decay * baselines[agent[i]] + (1 - decay) * scores[i]

    Rows that are not valid are skipped and get 0. All agents at once; in float64, result rounded once. Carries no gradient.
    Where values are checked raises for scores that are not finite and for agents outside [0, A).
    Source: SPIRAL's role-conditioned advantage estimation (arXiv 2506.24119), as in prime-rl.
    """
    function = "running_baseline_advantages"
    decay = checks.number(function, "decay", decay, at_least=0.0, fix="0.95 is usual")
    if decay > 1.0:
        checks.fail(function, "decay", "in [0, 1]", decay, "0.95 is usual")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    fix = "number the agents from 0 (anchor.group_ids) and keep one baseline each"
    checks.tensor(function, "agent", agent, shape=tuple(scores.shape), dtypes=(torch.int64,), device=scores.device, fix=fix)
    checks.tensor(function, "baselines", baselines, shape=(None,), dtypes=checks.FLOATS, device=scores.device, fix=fix)
    arguments.finite(function, "baselines", baselines, "start new agents at 0")
    agents = baselines.shape[0]
    if checks.values_wanted(agent, counted):
        expected = f"in [0, {agents}) for {agents} baselines"
        arguments.fail_outside(function, "agent", agent, counted, 0, agents, expected, "one outside", fix)
    start = baselines.detach().to(torch.float64)
    if scores.shape[0] == 0 or agents == 0:
        return RunningBaseline(torch.zeros_like(values).to(arguments.result_dtype(scores)), start)
    whose = torch.where(counted, agent, 0).clamp(0, agents - 1)

    # Newest first, so that a backward sum runs with time; the agent's old baseline stands at the end of its line.
    lines = torch.cat([whose, torch.arange(agents, device=whose.device)])
    terms = torch.cat([torch.where(counted, (1.0 - decay) * values, 0.0), start])
    keeps = torch.cat([torch.ones_like(values).masked_fill_(counted, decay), torch.zeros_like(start)])
    oldest = torch.full((agents,), whose.shape[0] + 1, dtype=torch.int64, device=whose.device)
    time = torch.cat([torch.arange(whose.shape[0], 0, -1, device=whose.device), oldest])
    order = sort_rows(time, lines)
    after = backward_sum(terms.index_select(0, order).unsqueeze(0), keeps.index_select(0, order).unsqueeze(0))[0]
    before = torch.cat([after[1:], after[-1:]])  # the old baseline ends each line, so no row's follower is of another agent
    rows = torch.empty_like(before).scatter_(0, order, before)[: whose.shape[0]]
    line = lines.index_select(0, order)
    newest = torch.ones_like(line, dtype=torch.bool)
    newest[1:] = line[1:] != line[:-1]
    final = segment_sum(torch.where(newest, after, 0.0), line, agents)
    return RunningBaseline(torch.where(counted, values - rows, 0.0).to(arguments.result_dtype(scores)), final)
