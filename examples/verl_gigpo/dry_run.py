"""The example without a GPU: verl's worker, transfer queue, trainer and loss around a model of 20,000 weights, in a minute.

    python examples/verl_gigpo/dry_run.py                 # GiGPO
    python examples/verl_gigpo/dry_run.py --step-weight 0 # the same as GRPO

verl's own code plays the episodes (its agent loop worker, with this folder's agent loop), stores them (TransferQueue), computes the
advantages (the trainer gigpo_fast_sync) and the loss (gigpo_fast_vanilla, from its registry). Where verl has vLLM and FSDP workers
stand twenty lines of torch.
"""

import argparse
import asyncio
import logging
import pathlib
import sys
import tempfile
import uuid
import warnings

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import ray  # noqa: E402
import torch  # noqa: E402
import transfer_queue  # noqa: E402
from corridor import LAST, TURNS, Corridor  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402
from verl.workers.rollout.replica import TokenOutput  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from gigpo_fast.integrations.verl import register  # noqa: E402
from gigpo_fast.integrations.verl_gigpo import register_trainers  # noqa: E402

SESSIONS = 8


def save_model(folder: str) -> None:
    """A Llama whose words are those of the game."""
    words = dict.fromkeys(word for place in range(LAST) for word in Corridor(place).question.split())
    words = ["<pad>", "<eos>", ">", *words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}>{% endif %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=template, padding_side="left"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(words), bos_token_id=None, eos_token_id=1, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


class Server:
    """Stands for vLLM: answers with one word, drawn from the model. The model is asked once for each prompt of an update."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.update, self.known = model, 0, {}

    def new_weights(self) -> None:
        self.update, self.known = self.update + 1, {}

    @torch.no_grad()
    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict, **_) -> TokenOutput:
        key = tuple(prompt_ids)
        if key not in self.known:
            self.known[key] = self.model(input_ids=torch.tensor([prompt_ids])).logits[0, -1].float().log_softmax(-1)
        log_probs = self.known[key]
        word = int(torch.multinomial(log_probs.exp(), 1))
        versions = {"min_global_steps": self.update, "max_global_steps": self.update}
        return TokenOutput(token_ids=[word], log_probs=[float(log_probs[word])], extra_fields=versions)


def play(worker, update: int) -> KVBatchMeta:
    """verl's worker plays SESSIONS episodes from each place and puts every turn into the queue."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    uids = [uuid.uuid4().hex for _ in range(LAST)]

    async def prompts() -> None:
        for start, uid in enumerate(uids):
            prompt = {"uid": uid, "agent_name": "corridor", "index": start, "extra_info": {"start": start}, "global_steps": update}
            await worker._run_prompt(prompt, sampling, {"step": update, "sample_index": start, "rollout_n": 0, "validate": False})

    asyncio.run(prompts())
    stored = transfer_queue.kv_list("train")["train"]
    failed = [uid for uid in uids if stored[uid]["status"] != "finished"]
    if failed:
        raise RuntimeError(f"{len(failed)} prompts failed: set VERL_LOGGING_LEVEL=ERROR and see the log")
    keys = [key for key in stored if key not in uids]
    transfer_queue.kv_clear(partition_id="train", keys=uids)
    return KVBatchMeta(partition_id="train", keys=keys, tags=[stored[key] for key in keys])


def learn(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: KVBatchMeta, actor) -> float:
    """Stands for the FSDP workers: one step on the whole batch with verl's ppo_loss. Returns the share of episodes won."""
    fields = ["input_ids", "prompts", "responses", "response_mask", "advantages", "old_log_probs", "rm_scores"]
    data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    ids, offsets = data["input_ids"].to_padded_tensor(0), data["input_ids"].offsets()
    attention = torch.arange(ids.shape[1]) < offsets.diff()[:, None]
    following = ids.roll(-1, 1)
    log_probs = model(input_ids=ids, attention_mask=attention.long()).logits.float().log_softmax(-1)
    log_probs = log_probs.gather(-1, following[..., None]).squeeze(-1)[attention]
    info = {"dp_size": 1, "batch_num_tokens": int(data["response_mask"].values().sum()), "global_batch_size": len(batch.keys)}
    micro = data.clone(False)
    for name, value in info.items():
        micro.set_non_tensor(name, value)
    loss, _ = ppo_loss(actor, {"log_probs": torch.nested.nested_tensor_from_jagged(log_probs, offsets)}, micro)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    last = {key.rpartition("_")[0]: float(score.sum()) for key, score in zip(batch.keys, data["rm_scores"].unbind())}
    return sum(last.values()) / len(last)


def settings(folder: str, step_weight: float):
    overrides = [
        "trainer.v1.trainer_mode=gigpo_fast_sync",
        "algorithm.adv_estimator=gigpo_fast_gigpo",
        "algorithm.gamma=0.9",
        f"+algorithm.gigpo.step_advantage_w={step_weight}",
        "actor_rollout_ref.actor.policy_loss.loss_mode=gigpo_fast_vanilla",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        f"actor_rollout_ref.model.path={folder}",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.n={SESSIONS}",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={HERE / 'agent_loop.yaml'}",
        "data.max_response_length=4",
        "transfer_queue.enable=True",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    OmegaConf.resolve(config)  # as verl's main does
    return config


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the share of episodes won at each update."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=25)
    parser.add_argument("--step-weight", type=float, default=1.0)
    options = parser.parse_args(arguments)
    register()
    register_trainers()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        config = settings(folder, options.step_weight)
        transfer_queue.init(config.transfer_queue)
        trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
        model = LlamaForCausalLM.from_pretrained(folder)
        server, optimizer = Server(model), torch.optim.AdamW(model.parameters(), lr=5e-3)
        worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(config=config, llm_client=server)
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        won = []
        for update in range(options.updates):
            batch, metrics = play(worker, update), {}
            old = transfer_queue.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rollout_log_probs"])
            old = TensorDict({"old_log_probs": old["rollout_log_probs"]}, batch_size=len(batch.keys))
            transfer_queue.kv_batch_put(keys=batch.keys, partition_id="train", fields=old)
            trainer._compute_advantage(batch, metrics)
            won.append(learn(model, optimizer, batch, actor))
            server.new_weights()
            transfer_queue.kv_clear(partition_id="train", keys=batch.keys)
            turns, shared = len(batch.keys) / LAST / SESSIONS, metrics["gigpo/shared_states"]
            print(f"update {update:3d}: won {won[-1]:.2f} in {turns:4.1f} of {TURNS} turns, states met again {shared:.0%}", flush=True)
        transfer_queue.close()
    ray.shutdown()
    return won


if __name__ == "__main__":
    won = main()
    print(f"won: {sum(won[:5]) / 5:.2f} in the first five updates, {sum(won[-5:]) / 5:.2f} in the last five")
