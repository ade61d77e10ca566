"""The transformers adapter over flash-attn's attention, padded and packed, where that package and a GPU are present."""

import importlib.util

import pytest
import torch

from gigpo_fast.integrations.transformers import hidden_and_head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from tests import gpu
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, roundings

transformers = pytest.importorskip("transformers")
LACKING = gpu.ON_GPU and importlib.util.find_spec("flash_attn") is None
pytestmark = [*gpu.marks, pytest.mark.skipif(LACKING, reason="needs flash-attn: pip install flash-attn (on a GPU machine)")]
ATTENTION = "flash_attention_2" if gpu.ON_GPU else "sdpa"  # the latter tries the test itself


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.Qwen2Config(vocab_size=120, max_position_embeddings=64, tie_word_embeddings=False, **sizes)
    torch.manual_seed(0)
    made = transformers.Qwen2ForCausalLM(config)
    made.lm_head.weight.data.normal_()
    made.set_attn_implementation(ATTENTION)
    return made.to(gpu.DEVICE, torch.bfloat16).eval()


def inputs_of(packed: bool) -> dict[str, torch.Tensor]:
    ids = gpu.randint(119, 2, 12) + 1
    if packed:  # two sequences in one row, told apart by their positions alone, which transformers does without a cache only
        positions = torch.cat([torch.arange(7), torch.arange(5)])[None].to(gpu.DEVICE)
        return {"input_ids": ids[:1], "position_ids": positions, "use_cache": False}
    ids[0, :3] = 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.parametrize("packed", [False, True])
def test_log_probs_and_d_weight(model, packed):
    """Against float64 logits of the model's own last hidden states, no worse than the model's own logits."""
    inputs = inputs_of(packed)
    targets, weight = inputs["input_ids"][:, 1:], model.lm_head.weight

    def gradient(log_probs: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(log_probs.where(targets > 0, 0).sum(), leaf)[0]

    hidden, head, _ = hidden_and_head(model, **inputs)
    got = linear_token_log_probs(hidden[:, :-1], head, targets).log_probs
    own = token_log_probs(model(**inputs).logits[:, :-1], targets).log_probs
    leaf = weight.detach().double().requires_grad_()
    last = model(**inputs, output_hidden_states=True).hidden_states[-1].detach().double()
    truth = token_log_probs((last @ leaf.T)[:, :-1], targets).log_probs
    kept = targets > 0
    floor = roundings(truth[kept], torch.float32, 8)
    assert_no_worse_than("log_probs", got[kept], truth[kept], own[kept], factor=VALUE, floor=floor)
    exact = gradient(truth, leaf)
    floor = roundings(exact, torch.bfloat16, 1)  # d_weight is rounded once
    assert_no_worse_than("d_weight", gradient(got, weight), exact, gradient(own, weight), factor=GRADIENT, floor=floor)
