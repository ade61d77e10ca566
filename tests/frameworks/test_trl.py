"""FusedGRPOTrainer against TRL's own GRPOTrainer: real training runs with the same seeds on a tiny model."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from gigpo_fast.integrations.trl import FusedGRPOTrainer
from gigpo_fast.ops import fused_loss
from tests.frameworks.trl_runs import WORDS, GRPOTrainer, assert_same, run, scripted_turns

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
# What an off-policy step cannot say without every token's log-prob.
ROW_METRICS = ("clip_ratio/low_min", "clip_ratio/high_max", "cispo_clip_ratio", "vespo/phi_seq_mean")


def settings_of(loss_type: str, **more) -> dict:
    # luspo sums over tokens where others average: its steps are as much longer, and rounding would grow from step to step.
    rate = {"learning_rate": 0.003} if loss_type == "luspo" else {}
    return {"loss_type": loss_type, **rate, **({"epsilon_high": 5.0} if loss_type == "cispo" else {}), **more}


def both(settings: dict, *, extra: dict | None = None, ours: dict | None = None, model=lambda: None, steps: int = 20):
    want = run(GRPOTrainer, extra=extra, model=model(), steps=steps, **settings)
    return want, run(FusedGRPOTrainer, extra={**(extra or {}), **(ours or {})}, model=model(), steps=steps, **settings)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equals_the_stock_trainer(loss_type, accumulation, beta):
    want, got = both(settings_of(loss_type, gradient_accumulation_steps=accumulation, beta=beta))
    assert got.trainer.unfused_because is None
    assert len(want.losses) == 20 * accumulation
    assert_same(got, want)


# Two updates a batch, the second one off-policy, with bounds that it crosses.
OFF_POLICY = {"num_iterations": 2, "beta": 0.1, "epsilon": 0.01, "steps_per_generation": 2, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize("row_metrics", [True, False])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_off_policy(loss_type, row_metrics):
    settings = settings_of(loss_type, **OFF_POLICY)
    if loss_type == "cispo":
        settings["epsilon_high"] = 1.01
    want, got = both(settings, ours={"row_metrics": row_metrics}, steps=12)
    assert (got.trainer.unfused_because is None) is not row_metrics
    assert_same(got, want, without=() if row_metrics else ROW_METRICS)
    if loss_type in ("grpo", "dapo"):
        assert max(entry["clip_ratio/region_mean"] for entry in want.logs) > 0.05, "nothing was clipped: the bounds were not tested"


VARIATIONS = {
    "temperature": {"temperature": 0.6, "beta": 0.1},
    "delta": {**OFF_POLICY, "delta": 1.02},
    "sequence ratio": {"importance_sampling_level": "sequence", "loss_type": "grpo", "beta": 0.1},
    "sequence ratio, off-policy": {**OFF_POLICY, "importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.003},
    "off-policy mask": {**OFF_POLICY, "off_policy_mask_threshold": 0.002, "learning_rate": 0.06},
    "no bias correction": {**OFF_POLICY, "use_bias_correction_kl": False},
    "vespo with a penalty": {**OFF_POLICY, "loss_type": "vespo"},
    "no truncated rows": {"mask_truncated_completions": True, "loss_type": "grpo"},
    "no scaling": {"scale_rewards": "none", "loss_type": "dr_grpo"},
    "two batches a generation": {"steps_per_generation": 2, "gradient_accumulation_steps": 4},
    "top entropy": {"top_entropy_quantile": 0.4},
    "entropy bonus": {"entropy_coef": 0.05, "loss_type": "grpo", "gradient_accumulation_steps": 2},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_target": 3.0, "entropy_coef_delta": 0.05},
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_option_of_the_loss(name):
    settings = VARIATIONS[name]
    row_metrics = "num_iterations" not in settings
    without = () if row_metrics else ROW_METRICS
    if not row_metrics and settings.get("importance_sampling_level") == "sequence":
        without = (*without, "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    want, got = both(settings, ours={"row_metrics": row_metrics}, steps=10)
    assert (got.trainer.unfused_because is not None) == ("entropy" in name)
    assert_same(got, want, without=without)


class Sampled:
    """A trainer whose rollouts came from vLLM, as far as scoring and loss can tell; vLLM itself is needed for generation alone."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.args.use_vllm = True
        if isinstance(self, FusedGRPOTrainer):
            self.read_args()

    def _generate(self, prompts):
        self.use_vllm = False
        try:
            return super()._generate(prompts)
        finally:
            self.use_vllm = True


class SampledStock(Sampled, GRPOTrainer):
    pass


class SampledOurs(Sampled, FusedGRPOTrainer):
    pass


def sampled_turns(prompts, trainer):
    """scripted_turns with log-probs that are not quite the model's, as a sampler of another precision has them; some are missing."""
    rows = scripted_turns(prompts, trainer)
    generator = torch.Generator().manual_seed(len(rows["completion_ids"][0]))
    draw = lambda ids: (-3.2 + 0.5 * torch.randn(len(ids), generator=generator)).tolist()  # noqa: E731
    rows["logprobs"] = [[None, *draw(ids[1:])] for ids in rows["completion_ids"]]
    return rows


@pytest.mark.parametrize("mode", ["sequence_mask", "sequence_truncate", "token_mask", "token_truncate"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_samplers_own_probabilities(loss_type, mode):
    """vLLM's importance sampling correction: fused without row metrics, TRL's own formula with them, and for vespo always."""
    if loss_type == "vespo" and mode.startswith("sequence"):
        pytest.skip("TRL refuses it")
    bounds = {"vllm_importance_sampling_clip_max": 1.3, "vllm_importance_sampling_clip_min": 0.8}
    settings = settings_of(loss_type, beta=0.1, gradient_accumulation_steps=2, vllm_importance_sampling_mode=mode, **bounds)
    extra = {"rollout_func": sampled_turns}
    want = run(SampledStock, extra=extra, steps=4, **settings)
    ratios = [entry["sampling/importance_sampling_ratio/mean"] for entry in want.logs]
    assert max(abs(ratio - 1) for ratio in ratios) > 0.02, "every ratio was 1: the correction was not tested"
    for row_metrics in (True, False):
        got = run(SampledOurs, extra={**extra, "row_metrics": row_metrics}, steps=4, **settings)
        assert (got.trainer.unfused_because is None) == (not row_metrics and loss_type != "vespo")
        assert_same(got, want, without=ROW_METRICS if got.trainer.unfused_because is None else ())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
def test_words_of_the_environment_are_not_trained(loss_type):
    settings = settings_of(loss_type, gradient_accumulation_steps=2, beta=0.1)
    want, got = both(settings, extra={"rollout_func": scripted_turns}, steps=10)
    assert_same(got, want)


SIZES = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
MODELS = {
    "gemma2": {"final_logit_softcapping": 1.0},
    "cohere": {"logit_scale": 2.0},
    "granite": {"logits_scaling": 0.5},
    "phi": {},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "router_aux_loss_coef": 0.1},
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_model_does_to_its_logits(kind):
    def model():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **MODELS[kind]))

    want, got = both({"gradient_accumulation_steps": 2}, model=model, steps=6)
    assert_same(got, want)
    assert ("aux_loss" in got.logs[0]) is (kind == "qwen2_moe")


@pytest.mark.parametrize("off", [{"gradient_checkpointing": False}, {"gradient_checkpointing": True}])
def test_gradient_checkpointing(off):
    assert_same(*reversed(both({**off, "loss_type": "grpo"}, steps=4)))


def test_autocast():
    """Under bf16 autocast ours is no further from float32 than TRL's own head is."""
    exact = run(GRPOTrainer, steps=1, extra={"rollout_func": scripted_turns})
    want, got = both({"bf16": True}, extra={"rollout_func": scripted_turns}, steps=1)
    for name, truth in exact.gradients[0].items():
        mine, theirs = ((r.gradients[0][name] - truth).norm() / truth.norm() for r in (got, want))
        assert mine <= 1.5 * theirs + 1e-3, name


def test_autocast_of_the_reference_model():
    """Policy and reference run in one precision, although accelerate prepares the reference before it gets its head call."""
    trainer = run(FusedGRPOTrainer, steps=1, extra={"rollout_func": scripted_turns}, bf16=True, beta=0.1).trainer
    seen = []
    for model in (trainer.ref_model, trainer.model_wrapped):
        layer = trainer.accelerator.unwrap_model(model).model.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
        model(input_ids=torch.tensor([[4, 5, 6]]), head_call=lambda hidden, head, auxiliary: hidden)
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_evaluation():
    from datasets import Dataset

    data = Dataset.from_dict({"prompt": ["w1 w2", "w3 w4"]})
    extra = {"eval_dataset": data, "rollout_func": scripted_turns}
    settings = {"per_device_eval_batch_size": 4, "beta": 0.1, "loss_type": "dapo", "gradient_accumulation_steps": 2}
    found = []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        trainer = run(kind, steps=2, extra=extra, **settings).trainer
        found.append(trainer.evaluate())
    want, got = found
    assert got.keys() == want.keys()
    for name in ("eval_loss", "eval_kl", "eval_entropy", "eval_reward"):
        assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-6), name


class HiddenStatesByMask(TorchDispatchMode):
    """Raises where hidden states are picked by a mask: only the device knows how many that gives."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if (
            function is torch.ops.aten.index.Tensor
            and arguments[0].dim() == 3
            and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        ):
            pytest.fail("places are asked for after the model's forward")
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("top_entropy", [1.0, 0.4], ids=["fused", "unfused"])
def test_tokens_are_planned_before_the_models_forward(top_entropy, monkeypatch):
    """Which tokens are trained has to be known on the host: asked inside the forward, that would wait for all of it."""
    monkeypatch.setattr(fused_loss, "order_tokens", lambda *batch: pytest.fail("planned inside the forward"))
    with HiddenStatesByMask():
        found = run(FusedGRPOTrainer, steps=2, extra={"rollout_func": scripted_turns}, top_entropy_quantile=top_entropy)
    assert (found.trainer.unfused_because is None) == (top_entropy == 1.0)
