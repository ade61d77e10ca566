"""verl's real transfer queue, agent loop worker and v1 trainers on a CPU, without a model or a GPU behind them."""

import asyncio
import contextlib
import itertools

import ray
import torch
import transfer_queue
from hydra import compose, initialize_config_module
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls

ESTIMATOR = "algorithm.adv_estimator=gigpo_fast_gigpo"
_partitions = itertools.count()


@contextlib.contextmanager
def queue():
    """verl's TransferQueue over a Ray of its own; one storage unit is enough, and each asks for a core."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    settings = config().transfer_queue
    settings.enable, settings.backend.SimpleStorage.num_data_storage_units = True, 1
    try:
        transfer_queue.init(settings)
        yield
        transfer_queue.close()
    finally:
        ray.shutdown()


def config(*overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def trainer(*overrides: str, mode: str = "gigpo_fast_sync"):
    """The trainer that verl makes of a config: what needs GPUs is made by its init(), which is not called."""
    settings = config(f"trainer.v1.trainer_mode={mode}", *overrides)
    return get_trainer_cls(settings.trainer.v1.trainer_mode)(settings)


def output(response: list[int], reward: float | None = None, **fields) -> AgentLoopOutput:
    """What an agent loop returns; `response` is its mask."""
    return AgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=[3] * len(response),
        response_mask=response,
        reward_score=reward,
        num_turns=2,
        metrics=AgentLoopMetrics(),
        extra_fields={"reward_extra_info": {}, "min_global_steps": 0, "max_global_steps": 0, **fields},
    )


def turn(state, reward: float, score: float | None = None) -> AgentLoopOutput:
    """One output per step: two tokens."""
    return output([1, 1], score, anchor_states=[state], step_rewards=[reward])


class Worker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker where an agent loop has returned; its other half, tokenizer and language model, is not made."""

    def __init__(self) -> None:
        self.reward_loop_worker_handles, self.distillation_enabled, self.processor = None, False, None


def write(sessions: dict[str, list[AgentLoopOutput]]) -> tuple[str, list[str], list[dict]]:
    """Put the outputs of {"uid_session": outputs} where verl puts them; (partition, keys, tags) in that order."""
    uids = f"p{next(_partitions)}"  # every call gets uids of its own, so that one queue serves all tests
    for name, outputs in sessions.items():
        uid, session = name.split("_")
        work = Worker()._agent_loop_postprocess(outputs, False, uid=uids + uid, session_id=session, global_steps=0)
        asyncio.run(work)
    stored = transfer_queue.kv_list("train")["train"]
    keys = [f"{uids}{name}_{index}" for name, outputs in sessions.items() for index in range(len(outputs))]
    return "train", keys, [stored[key] for key in keys]


def batch(sessions: dict[str, list[AgentLoopOutput]], order: list[int] | None = None) -> KVBatchMeta:
    partition, keys, tags = write(sessions)
    order = order or list(range(len(keys)))
    return KVBatchMeta(partition_id=partition, keys=[keys[row] for row in order], tags=[tags[row] for row in order])


def put(meta: KVBatchMeta, **fields: list[list[float]]) -> None:
    """Add fields with one value a response token, as the actor's log-probs are added."""
    from tensordict import TensorDict

    nested = {
        name: torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged) for name, rows in fields.items()
    }
    transfer_queue.kv_batch_put(keys=meta.keys, partition_id=meta.partition_id, fields=TensorDict(nested, batch_size=len(meta.keys)))


def get(meta: KVBatchMeta, *names: str) -> list[list[list[float]]]:
    """Fields of a batch, row by row, without padding."""
    stored = transfer_queue.kv_batch_get(keys=meta.keys, partition_id=meta.partition_id, select_fields=list(names))
    return [[row.tolist() for row in stored[name].unbind()] for name in names]
