"""A training step through verl's FSDP engine code (its inputs, its outputs, its loss call) on one CPU process: stock against ours.

The engine itself wants an accelerator and a process group, so its class is made without them; everything between a micro-batch and a
backward is verl's own.
"""

import contextlib
import functools
import types

import pytest
import torch
from tensordict import NonTensorData, TensorDict
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils import torch_functional
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils import losses

from gigpo_fast.integrations.verl import ppo_loss, use_fused_head
from tests.frameworks.verl_cases import PROMPTS, RESPONSES, actor_config, close, dense

WORDS = 53
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


class Engine(transformer_impl.FSDPEngineWithLMHead):
    """verl's engine around one model, on a CPU."""

    def __init__(self, *, fused: bool) -> None:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=WORDS, initializer_range=0.3, **SIZES))
        model.__class__ = type("Tiny", (Qwen2ForCausalLM,), {})  # verl patches classes
        patch_forward_with_backends(model, use_fused_kernels=fused, fused_kernels_backend="torch")
        self.module, self.fused = model, fused
        self.use_ulysses_sp, self.ulysses_sequence_parallel_size, self.pad_to_length = False, 1, False
        self._autocast_dtype = torch.float32
        self.compute_entropy_from_logits = torch_functional.entropy_from_logits
        names = {"entropy_checkpointing": False, "entropy_from_logits_with_chunking": False}
        self.engine_config = types.SimpleNamespace(**names)

    def get_data_parallel_group(self):
        return None


def micro_batch(*, fused: bool, packed: bool, entropy: bool) -> TensorDict:
    b, generator = dense(), torch.Generator().manual_seed(4)
    jagged = lambda rows: torch.nested.nested_tensor(rows, layout=torch.jagged)  # noqa: E731
    rows = [torch.randint(WORDS, (p + r,), generator=generator) for p, r in zip(PROMPTS, RESPONSES)]
    old = {name: b[name] for name in ("response_mask", "advantages", "rollout_is_weights")}
    old |= {name: b[name] - 2.5 for name in ("old_log_probs", "ref_log_prob")}  # near what an untrained model says
    fields = {name: jagged([row[:r] for row, r in zip(value, RESPONSES)]) for name, value in old.items()}
    fields |= {"input_ids": jagged(rows), "position_ids": jagged([torch.arange(len(row)) for row in rows])}
    fields |= {"prompts": jagged([row[:p] for row, p in zip(rows, PROMPTS)]), "responses": jagged([r[p:] for r, p in zip(rows, PROMPTS)])}
    data = TensorDict(fields, batch_size=[len(rows)])
    settings = {"dp_size": 1, "batch_num_tokens": int(b["response_mask"].sum()), "global_batch_size": len(rows), "temperature": 0.8}
    settings |= {"use_fused_kernels": fused, "use_remove_padding": packed, "calculate_entropy": entropy}
    for name, value in settings.items():
        data[name] = NonTensorData(value)
    return data


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("terms", [{}, {"use_kl_loss": True, "kl_loss_coef": 0.1, "entropy_coeff": 0.05}], ids=["policy", "all terms"])
@pytest.mark.parametrize("mode", ["vanilla", "gspo", "geo_mean"])
def test_a_step_of_the_engine(mode, terms, packed, monkeypatch):
    monkeypatch.setattr(transformer_impl, "get_device_id", lambda: "cpu")
    monkeypatch.setattr(transformer_impl, "get_device_name", lambda: "cpu")
    config, found = actor_config(mode, loss_agg_mode="seq-mean-token-mean", **terms), {}
    kinds = {"logits": (False, losses.ppo_loss), "verl's head": (True, losses.ppo_loss), "ours": (True, ppo_loss)}
    for kind, (fused, loss) in kinds.items():
        with use_fused_head() if kind == "ours" else contextlib.nullcontext():
            engine = Engine(fused=fused)
            data = micro_batch(fused=fused, packed=packed, entropy=bool(terms))
            value, output = engine.forward_step(data, loss_function=functools.partial(loss, config=config), forward_only=False)
            value.backward()
        gradients = {name: p.grad for name, p in engine.module.named_parameters()}
        rows = output["model_output"]["log_probs"].unbind()
        found[kind] = output["loss"], output["metrics"], gradients, torch.cat([row[:-1] for row in rows])  # the last one has no label
    want = found["logits"]
    for kind in ("verl's head", "ours"):
        got = found[kind]
        close(f"{kind}: loss", got[0], want[0])
        torch.testing.assert_close(got[3], want[3], rtol=1e-4, atol=1e-5)
        assert got[1].keys() == want[1].keys()
        for name, metric in want[1].items():
            if name != "kl_coef":
                close(f"{kind}: {name}", got[1][name].values, metric.values, rtol=1e-4)
                assert got[1][name].aggregation is metric.aggregation
        for name, truth in want[2].items():
            torch.testing.assert_close(
                got[2][name], truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()), msg=functools.partial("{}: {}: {}".format, kind, name)
            )
    assert max(float(value.abs().max()) for value in want[2].values()) > 1e-3
