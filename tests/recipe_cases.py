"""The recipes' objectives, by name and over the product of their options."""

import inspect
import itertools

from gigpo_fast import recipes
from gigpo_fast.objective import PolicyObjective

# Another value of each setting that reaches an objective; a setting that is not here is one of the advantages' or the rewards'.
OTHER = {
    "anchor": "old", "beta": 50.0, "both_sides": True, "ceiling": 1.3, "bias": 0.7, "clip": 0.1, "clip_high": 0.4, "clip_low": 0.1, "coefficient": 0.02, "drop_degenerate": True,
    "dual_clip": 3.0, "entropy_coefficient": 0.02, "entropy_target": 1.5, "epsilon": 0.1, "floor_negative": 0.1, "floor_positive": 0.9, "fraction": 0.4,
    "geometric": True, "half_life": 2, "importance": True, "max_fraction": 0.4, "mu": 0.3, "nll_coefficient": 0.1, "outer_high": 0.3, "outer_low": 0.3, "peak": 0.5,
    "safety": 1.1, "weight_clip": 0.5,
    "high": 0.3, "k_negative": 2.0, "k_positive": 3.0, "kl_coefficient": 0.05, "lambda_negative": 3.0, "lambda_positive": 2.0, "length": 7.0,
    "low": 0.1, "masked": True, "maximum": 1.1, "negative_weight": 0.5, "normalize": 2, "policy": 0.5, "positive_weight": 0.5,
    "ratio_score": True, "score_function": False, "seed": 3, "step_size": 0.5, "tau": 0.3, "tau_negative": 2.0, "tau_positive": 0.5,
    "temperature": 0.5, "threshold": 0.3, "unified_mask": True,
}  # fmt: skip
OTHER_OF = {
    ("icepop", "high"): 1.5, ("icepop_sequence", "low"): 0.9, ("icepop_sequence", "high"): 1.2, ("clip_cov", "low"): -0.5, ("clip_cov", "high"): 3.0,
    ("disco", "threshold"): 1e-3, ("disco_b", "threshold"): 1e-3, ("art_average", "low"): 0.1, ("art_average", "high"): 0.2,
}  # fmt: skip
ADVANTAGES = {"gamma", "lam", "history", "length_exponent", "step_weight", "scale", "normaliser", "decay", "k", "top", "normalise_first", "credit", "shift"}
REWARDS = {"max_length", "buffer", "clamp", "slope", "offset", "max_calls", "reward_clip", "ddof"}
SCHEDULES = {"least", "most", "explore", "steps", "start", "decrement", "floor", "valley", "warmup"}
# coefficient, temperature and decay are the rewards', the advantages' or a second batch's in these recipes.
ELSEWHERE = {"concise_r_length", "echo", "ensemble", "maxmin", "mt_grpo", "opmd", "salsa"}


def settings(name: str) -> dict[str, object]:
    """The settings of a recipe and their defaults."""
    return {key: parameter.default for key, parameter in inspect.signature(getattr(recipes, name)).parameters.items()}


def varied(name: str) -> list[str]:
    """The settings that reach the objective."""
    beyond = ADVANTAGES | REWARDS | SCHEDULES | ({"coefficient", "temperature"} if name in ELSEWHERE else set())
    return [key for key in settings(name) if key not in beyond]


def other(name: str, key: str):
    """Another value of a setting than its default."""
    return OTHER_OF.get((name, key), OTHER.get(key))


def choices(name: str) -> list[dict]:
    """Every combination of the defaults and the other values; the first is the default."""
    keys = varied(name)
    return [dict(chosen) for chosen in itertools.product(*([(key, settings(name)[key]), (key, other(name, key))] for key in keys))]


POLICY = [name for name in recipes.names() if isinstance(recipes.recipe(name).objective, PolicyObjective)]
PAIRWISE = [name for name in recipes.names() if name not in POLICY]


def distinct() -> dict[str, PolicyObjective]:
    """Each objective once, under the first recipe that has it by default; then each under other values of all settings at once."""
    found: dict[PolicyObjective, str] = {}
    for name in POLICY:
        found.setdefault(recipes.recipe(name).objective, name)
    for name in POLICY:
        found.setdefault(recipes.recipe(name, **choices(name)[-1]).objective, f"{name}, other settings")
    return {name: objective for objective, name in found.items()}


OBJECTIVES = distinct()
