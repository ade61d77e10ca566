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
def sample(
    model: Qwen2ForCausalLM,
    prompts: Tensor,  # (n, T) int64, all of one length
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One token after each prompt, drawn from the whole vocabulary, and its log-probability: both (n,)."""
    logits = model(input_ids=prompts, logits_to_keep=1).logits[:, -1]
    log_probs = logits.float().log_softmax(-1)
    tokens = torch.multinomial(log_probs.exp(), 1, generator=generator)
    return tokens[:, 0], log_probs.gather(1, tokens)[:, 0]
