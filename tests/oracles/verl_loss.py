"""verl's policy losses (verl.trainer.ppo.core_algos), by the mapping of gigpo_fast.integrations.verl_loss."""

import types

from gigpo_fast.integrations.verl_loss import loss_function
from gigpo_fast.integrations.verl_objective import MODES

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs, mode = case.config, case.inputs, case.config["loss_mode"]
    if mode not in MODES:
        raise Unsupported(f"no blocks for loss_mode {mode!r}")
    log_probs = inputs["log_probs"].clone().requires_grad_()
    loss, metrics = loss_function(mode)(
        inputs["old_log_probs"],
        log_probs,
        inputs["advantages"].expand_as(log_probs),
        inputs["mask"],
        config["loss_agg_mode"],
        actor_config(config),
        inputs.get("rollout_is_weights"),
    )
    loss.backward()
    return Answer({"loss": loss.detach(), "grad_log_probs": log_probs.grad, **metrics})


def actor_config(config: dict) -> types.SimpleNamespace:
    """verl's ActorConfig as far as a loss reads it; a case records the settings of its own mode."""
    names = ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
    own = ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta")
    policy_loss = types.SimpleNamespace(**{name: config.get(name) for name in own})
    return types.SimpleNamespace(**{name: config.get(name) for name in names}, policy_loss=policy_loss, global_batch_info={})


ADAPTER = Adapter(answer)
