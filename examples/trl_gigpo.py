"""GiGPO in TRL: a tiny model learns to walk a corridor through text, several turns a conversation, on a CPU in a minute.

    python examples/trl_gigpo.py                 # GiGPO: what a step was worth among steps from the same place
    python examples/trl_gigpo.py --step-weight 0 # the same as GRPO

The agent stands at a place of the corridor, answers "left" or "right", is told where it stands now, and has won at the last place.
What to copy: `walk`, a rollout_func that also returns each turn's state and reward, and the trainer in `main`.
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

from gigpo_fast.integrations.trl import FusedGRPOTrainer, GiGPOCredit

LAST, TURNS = 6, 12
WORDS = ["<pad>", "<eos>", "at", ">", "left", "right", *map(str, range(LAST + 1))]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, **sizes))


@torch.no_grad()
def walk(prompts: list[str], trainer: FusedGRPOTrainer) -> dict[str, list]:
    """Play one episode for each prompt. The mask is 1 at what the model wrote; a state is what it saw before it answered."""
    tokenizer, model = trainer.processing_class, trainer.model
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    place = [int(prompt.split()[1]) for prompt in prompts]
    found = {"prompt_ids": [list(row) for row in rows], "completion_ids": [[] for _ in rows], "env_mask": [[] for _ in rows]}
    found |= {"anchor_states": [[] for _ in rows], "step_rewards": [[] for _ in rows], "logprobs": None}
    playing = list(range(len(rows)))
    for _ in range(TURNS):
        ids = torch.tensor([rows[i] for i in playing], device=model.device)  # all of one length: a turn has as many tokens as any other
        logits = model(input_ids=ids, logits_to_keep=1).logits[:, -1].float() / trainer.temperature
        answers = torch.multinomial(logits.softmax(-1), 1)[:, 0].tolist()
        for i, answer in zip(playing, answers):
            found["anchor_states"][i].append(f"place {place[i]}")
            place[i] += {"left": -1, "right": 1}.get(WORDS[answer], 0)
            place[i] = max(place[i], 0)
            found["step_rewards"][i].append(float(place[i] == LAST))
            reply = tokenizer(f"at {place[i]} >")["input_ids"]
            rows[i] = rows[i] + [answer, *reply]
            found["completion_ids"][i] += [answer, *reply]
            found["env_mask"][i] += [1] + [0] * len(reply)
        playing = [i for i in playing if place[i] != LAST]
        if not playing:
            break
    return {**found, "solved": [float(at == LAST) for at in place]}


def solved(solved: list[float], **_) -> list[float]:
    """The episode's reward, from the field of that name that the rollout returned."""
    return solved


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the share of episodes won at each update."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--step-weight", type=float, default=1.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FusedGRPOTrainer(
            model=make_model(),
            reward_funcs=solved,
            args=GRPOConfig(
                folder,
                max_steps=options.updates,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=4 * TURNS,
                learning_rate=2e-3,
                scale_rewards="none",
                logging_steps=1,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": [f"at {start} >" for start in range(LAST - 1)] * 4}),
            processing_class=make_tokenizer(),
            rollout_func=walk,
            credit=GiGPOCredit(gamma=0.9, step_weight=options.step_weight),
        )
        trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


if __name__ == "__main__":
    won = main()
    print(f"won: {sum(won[:10]) / 10:.2f} in the first ten updates, {sum(won[-10:]) / 10:.2f} in the last ten")
