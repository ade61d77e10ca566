"""Credit of steps and turns beyond GiGPO: what a step led to, and where a turn ends. The estimators without a settled name are functions
of gigpo_fast.advantage: state_gae_advantages, action_advantages, hindsight_advantages, turn_baseline_advantages, turn_gain_advantages."""

from .base import Parts, register
from .common import advantages, clipped


@register("Beyond Trajectory-Level Attribution: Graph-Based Credit Assignment for Agentic Reinforcement Learning (arXiv 2605.26684)")
def graphgpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    decay: float = 0.1,
    credit: float = 10.0,
    step_weight: float = 1.0,
) -> Parts:
    """GraphGPO: a step's advantage by how near to success it led in the graph of the task's trajectories, plus the episode's.

        A = episode advantage + step_weight * standardised(credit * decay ** distance) among the steps of a state;  loss as gigpo's

    decay 0.1, credit 10 and equal weights are a public port's; clip and penalty those of GiGPO's scripts.
    """
    objective = clipped(clip_low, clip_high, kl=kl_coefficient)
    return Parts(objective, advantages("graph_advantages", decay=decay, credit=credit, step_weight=step_weight))


@register("Group-Graph Policy Optimization for Long-Horizon Agentic Reinforcement Learning (arXiv 2606.22995)")
def g2po(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    gamma: float = 0.95,
    step_weight: float = 1.0,
    scale: str | None = None,
) -> Parts:
    """G2PO: the value of the state that a step led to, among steps of its state and as a gain among steps of its task.

    gamma 0.95 is written into the authors' code; scale None is their WebShop script's mean_norm, "std" their mean_std_norm. Clip and
    penalty are those of GiGPO's scripts, which theirs extend.
    """
    objective = clipped(clip_low, clip_high, kl=kl_coefficient)
    return Parts(objective, advantages("g2po_advantages", gamma=gamma, step_weight=step_weight, scale=scale))


@register("Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Credit Assignment (arXiv 2505.11821)")
def mt_grpo(*, clip: float = 0.2, coefficient: float = 1.0) -> Parts:
    """MT-GRPO: tokens before the first tool result also get the turn's standardised reward, those after it the outcome's alone.

    coefficient 1 is the authors' code's; clip and token mean are grpo's.
    """
    return Parts(clipped(clip, clip), advantages("mt_grpo_advantages", coefficient=coefficient))
