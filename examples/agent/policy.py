"""The policy: a language model of Qwen2's architecture, randomly initialised, small enough for one CPU core."""

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM


def tiny_qwen2(vocab_size: int, *, hidden_size: int = 64, layers: int = 2) -> Qwen2ForCausalLM:
    """About 90 thousand parameters. Seed torch before the call: the weights are drawn here."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


@torch.no_grad()
def next_token_log_probs(
    model: Qwen2ForCausalLM,
    prompts: Tensor,  # (n, T) int64, all of one length
) -> Tensor:  # (n, V) float32
    """What the model says about the token after each prompt: the whole vocabulary, nothing ruled out."""
    return model(input_ids=prompts, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
