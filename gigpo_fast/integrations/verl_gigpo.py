"""GiGPO in verl's v1 trainers: verl's own trainer, whose advantages come from what the agent loop says about its turns.

    trainer.v1.trainer_mode=gigpo_fast_sync algorithm.adv_estimator=gigpo_fast_gigpo algorithm.gamma=0.95

Rewards, KL in the reward, rollout correction and what is written back stay verl's. It asks an estimator for advantages but hands it
neither states nor trajectories, so the trainer reads those and keeps them ready for the estimator of that name.
"""

import contextlib
import contextvars
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .verl_turns import GiGPOConfig, fail, gigpo_token_advantages
from .verl_version import check_verl

__all__ = ["GiGPOAdvantage", "GiGPOConfig", "gigpo_estimator", "gigpo_token_advantages", "register_trainers"]

ESTIMATOR = "gigpo_fast_gigpo"
TRAINERS = {"sync": "PPOTrainerSync", "colocate_async": "PPOTrainerColocateAsync", "separate_async": "PPOTrainerSeparateAsync"}
_V1 = "verl.trainer.ppo.v1"


class GiGPOAdvantage:
    """The part of the trainers that is ours: class Mine(GiGPOAdvantage, PPOTrainerSync), registered with verl's register_trainer.

    Needs algorithm.adv_estimator=gigpo_fast_gigpo and no critic; reads GiGPOConfig before anything is started. Sets
    trainer.v1.trainer_mode to the name of verl's own trainer, because verl chooses replay buffer, checkpoints and refills by it.
    """

    def __init__(self, config: Any) -> None:
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        if config.algorithm.adv_estimator != ESTIMATOR:
            fail(
                "algorithm.adv_estimator",
                repr(ESTIMATOR),
                config.algorithm.adv_estimator,
                "or choose trainer.v1.trainer_mode without GiGPO",
            )
        if config.critic.enable:
            fail("critic.enable", "null or false", config.critic.enable, "GiGPO has no values to learn from")
        self.gigpo = GiGPOConfig.of(config.algorithm)
        config.trainer.v1.trainer_mode = next(mode for mode in TRAINERS if TRAINER_REGISTRY[mode] in type(self).__mro__)
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        import transfer_queue

        stored = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask", "extra_fields"]
        )
        mask = stored["response_mask"]
        said = list(stored["extra_fields"]) if "extra_fields" in stored.keys() else [{}] * len(batch.keys)
        rollout = _Rollout(
            (mask.to_padded_tensor(0) if mask.is_nested else mask).bool(),
            batch.keys,
            [getattr(fields, "data", fields) for fields in said],
            [bool(tag.get("is_padding", False)) for tag in batch.tags],
            self.gigpo,
            metrics,
            self.global_steps if self.gigpo.record is not None else None,
        )
        with _ready(rollout):
            return super()._compute_advantage(batch, metrics)


def register_trainers() -> None:
    """Make gigpo_fast_sync, gigpo_fast_colocate_async, gigpo_fast_separate_async and the estimator gigpo_fast_gigpo known to verl.

    At once if verl's v1 trainers are imported, else when they are, since importing them takes seconds that most processes never need.
    Again is the same as once. The entry point in group verl.plugins calls it in every process that imports verl.
    """
    if _V1 in sys.modules:
        _register()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _Rollout(NamedTuple):
    mask: Tensor  # before rollout correction rejects tokens, which would split turns
    keys: Sequence[str]
    extra_fields: Sequence[Mapping]
    padding: Sequence[bool]
    config: GiGPOConfig
    metrics: dict[str, float]
    iteration: int | None


_rollout: contextvars.ContextVar[_Rollout | None] = contextvars.ContextVar("gigpo_fast_verl_rollout", default=None)


@contextlib.contextmanager
def _ready(rollout: _Rollout) -> Iterator[None]:
    token = _rollout.set(rollout)
    try:
        yield
    finally:
        _rollout.reset(token)


def gigpo_estimator(token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, index: Any = None) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator gigpo_fast_gigpo: (B, T) advantages, and the same as returns; inside a trainer of register_trainers."""
    rollout = _rollout.get()
    if rollout is None:
        fix = "verl hands no states to an estimator: choose trainer.v1.trainer_mode=gigpo_fast_sync (or _colocate_async, _separate_async)"
        fail("algorithm.adv_estimator", "one of verl's own with this trainer", ESTIMATOR, fix)
    if index is not None and [str(uid) for uid in index] != [key.rsplit("_", 2)[0] for key in rollout.keys]:
        fail("uid", "in the order of the keys", "another order", "leave the batch as the transfer queue returns it")
    advantages, metrics = gigpo_token_advantages(
        token_level_rewards,
        rollout.mask,
        rollout.keys,
        rollout.extra_fields,
        config=rollout.config,
        padding=rollout.padding,
        iteration=rollout.iteration,
    )
    rollout.metrics.update(metrics)
    advantages = torch.where(response_mask.bool(), advantages, 0.0)
    return advantages, advantages


class _WhenImported(importlib.abc.MetaPathFinder):
    """Registers the trainers as soon as verl's v1 trainers have been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != _V1:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module
        return spec


def _register() -> None:
    check_verl("register_trainers")
    from verl.trainer.ppo import v1
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    register_adv_est(ESTIMATOR)(gigpo_estimator)
    for mode, name in TRAINERS.items():
        if f"gigpo_fast_{mode}" not in TRAINER_REGISTRY:
            kind = type(f"GiGPO{name}", (GiGPOAdvantage, getattr(v1, name)), {"__doc__": f"verl's {name} with GiGPO's advantages."})
            v1.register_trainer(f"gigpo_fast_{mode}")(kind)
