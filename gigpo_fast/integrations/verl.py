"""verl 0.9.1 with this engine: losses and advantage estimators in verl's own registries, ppo_loss, and the fused head.

    actor_rollout_ref.actor.policy_loss.loss_mode=gigpo_fast_vanilla      # after pip install, in every process that imports verl
    algorithm.adv_estimator=gigpo_fast_grpo

Importing this module imports no verl.
"""

from collections.abc import Callable

from .. import checks
from ..objective import PolicyObjective
from ..recipes import names, recipe
from .verl_estimators import NAMES, estimator
from .verl_head import FusedTokenHead, use_fused_head
from .verl_loss import loss_function, objective_function, ppo_loss
from .verl_objective import MODES, PREFIX
from .verl_version import check_verl

__all__ = ["FusedTokenHead", "ppo_loss", "register", "register_objective", "use_fused_head"]

_made: dict[str, Callable] = {}  # one function for one name, so that registering again is the same function


def register() -> None:
    """Enter losses and estimators into verl's registries; verl does it by itself through the entry point `verl.plugins`.

    Policy losses: gigpo_fast_<mode> for every mode of verl but bypass_mode, with verl's answers (see `verl_loss.loss_function`), and
    gigpo_fast_recipe_<recipe> for every recipe whose loss reads log-probs and advantages alone, with the recipe's own numbers and
    aggregation: actor.loss_agg_mode must name it, clip_ratio and its like are not read. Advantage estimators: gigpo_fast_<name> for
    `verl_estimators.NAMES`. Calling it again changes nothing. Raises for another version of verl, and where somebody else holds a name.
    """
    check_verl("register")
    from verl.trainer.ppo.core_algos import register_adv_est

    for mode in MODES:
        _register_loss(PREFIX + mode, _made.get(PREFIX + mode) or loss_function(mode))
    for name in _plain_recipes():
        register_objective(f"recipe_{name}", recipe(name).objective)
    for name in NAMES:
        full = PREFIX + name
        register_adv_est(full)(_made.setdefault(f"estimator {full}", estimator(name)))


def register_objective(name: str, objective: PolicyObjective) -> None:
    """Enter the policy loss gigpo_fast_<name> of any objective, yours included; see `verl_loss.objective_function`.

    In Ray workers it must run too: put the call into a module and name that in VERL_USE_EXTERNAL_MODULES. Raises for an objective that
    reads more than verl hands to a loss, and where the name is held by another function.
    """
    check_verl("register_objective")
    key = PREFIX + name
    made = _made.get(key)
    if made is None or getattr(made, "objective", None) != objective:
        made = objective_function(name, objective)
    _register_loss(key, made)


def _register_loss(name: str, made: Callable) -> None:
    """verl's registry overwrites in silence; this one refuses."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, register_policy_loss

    held = POLICY_LOSS_REGISTRY.get(name)
    if held is not None and held is not made:
        checks.fail("register", f"the policy loss {name}", "free or ours", f"held by {held}", "take another name, or remove that one")
    _made[name] = register_policy_loss(name)(made)


def _plain_recipes() -> list[str]:
    """Recipes whose loss reads log-probs and advantages alone and is one loss over one batch."""
    found = []
    for name in names():
        one = recipe(name)
        of = one.objective
        if isinstance(of, PolicyObjective) and not (of.reads or of.needs_reference or of.needs_entropy or one.second):
            found.append(name)
    return found
