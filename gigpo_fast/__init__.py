"""gigpo_fast: the engine between an LLM agent's rollouts and its optimiser step.

    observations -> anchor.group_states -> anchor ids -> advantage.* -> advantages per step -> per token
    hidden states, head weight, token ids, old and reference log-probs, mask -> loss.* -> loss, gradients, metrics

Glossary, used in every file:
    B rows, T tokens of a row, N scored tokens, H hidden size, V vocabulary, S steps, G groups
    step        one model call of the agent
    trajectory  the steps of one episode
    group       the trajectories that started from one task
    anchor      the state a step was taken in; steps of one group in the same state form a step group
    mask        True = this token is trained
"""

import importlib

from .checks import validation

__version__ = "0.1.0"
__all__ = [
    "advantage",
    "anchor",
    "backend",
    "distributed",
    "logprob",
    "loss",
    "objective",
    "packing",
    "pairwise",
    "recipes",
    "reward",
    "rollouts",
    "testing",
    "validation",
]


def __getattr__(name: str):
    # Submodules load on first use, so that `import gigpo_fast` stays as cheap as importing torch.
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'gigpo_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
