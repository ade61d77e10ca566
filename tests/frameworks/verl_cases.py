"""Micro-batches as verl's engine hands them to a loss, padded and nested, and configs of its actor."""

import itertools

import torch
from tensordict import NonTensorData, TensorDict
from verl.workers.config import ActorConfig, PolicyLossConfig

MODES = ("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo")
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
WHOLE = {"dp_size": 2, "batch_num_tokens": 61, "global_batch_size": 14}  # of a batch of which this is a part
ALONE = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}
RESPONSES, PROMPTS = (7, 9, 4, 0, 1, 9), (3, 1, 4, 2, 5, 2)
WIDTH = 9


def actor_config(mode: str, **settings) -> ActorConfig:
    """Bounds that a batch of `dense` crosses on both sides; clip_cov drops every candidate, so that its draw is no matter."""
    numbers = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.05, "clip_cov_ub": 0.6, "kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7, "dro_beta": 0.3}
    bounds = {"clip_ratio": 0.1, "clip_ratio_low": 0.15, "clip_ratio_high": 0.25, "clip_ratio_c": 1.3, "tau_pos": 1.1, "tau_neg": 1.4}
    given = {"strategy": "fsdp", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 8, **bounds, **settings}
    return ActorConfig(policy_loss=PolicyLossConfig(loss_mode=mode, **numbers), **given)


def dense(seed: int = 0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """(B, T) each: rows of uneven length, one of them empty, with words of the environment (mask 0) inside."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda spread: spread * torch.randn(len(RESPONSES), WIDTH, generator=generator, dtype=dtype)  # noqa: E731
    old = -torch.rand(len(RESPONSES), WIDTH, generator=generator, dtype=dtype) * 3 - 0.05
    mask = torch.arange(WIDTH) < torch.tensor(RESPONSES)[:, None]
    mask[0, 2:4] = mask[5, 5] = False
    return {
        "old_log_probs": old,
        "log_probs": (old + normal(0.4)).clamp(max=-1e-3),
        "advantages": normal(1.0),
        "response_mask": mask,
        "rollout_is_weights": torch.rand(len(RESPONSES), WIDTH, generator=generator, dtype=dtype) * 2,
        "ref_log_prob": old + normal(0.5),
        "entropy": torch.rand(len(RESPONSES), WIDTH, generator=generator, dtype=dtype) * 3,
    }


def micro_batch(b: dict[str, torch.Tensor], *, nested: bool, weights: bool, info: dict) -> tuple[TensorDict, torch.Tensor, torch.Tensor]:
    """(data, log_probs, entropy): what ppo_loss is called with, the last two leaves that want a gradient; longest prompt first, as verl's."""
    lengths = list(zip(PROMPTS, RESPONSES))
    ids = [torch.arange(p + r) for p, r in lengths]
    prompts, responses = [i[:p] for i, (p, _) in zip(ids, lengths)], [i[p:] for i, (p, _) in zip(ids, lengths)]
    names = ["response_mask", "old_log_probs", "advantages", "ref_log_prob", *(["rollout_is_weights"] if weights else [])]
    if nested:
        jagged = lambda rows: torch.nested.nested_tensor(rows, layout=torch.jagged)  # noqa: E731
        fields = {name: jagged([row[:r] for row, r in zip(b[name], RESPONSES)]) for name in names}
        fields |= {"prompts": jagged(prompts), "responses": jagged(responses)}
    else:
        left, wide = max(PROMPTS), torch.zeros(len(RESPONSES), WIDTH, dtype=torch.int64)
        attention = torch.zeros(len(RESPONSES), left + WIDTH, dtype=torch.int64)
        for row, (p, r) in enumerate(lengths):
            attention[row, left - p : left + r] = 1
        fields = {name: b[name] for name in names}
        fields |= {"prompts": attention[:, :left], "responses": wide, "attention_mask": attention}
    data = TensorDict(fields, batch_size=[len(RESPONSES)])
    for name, value in info.items():
        data[name] = NonTensorData(value)
    if nested:
        data["max_response_len"] = NonTensorData(WIDTH)
    return data, whole(b["log_probs"]).requires_grad_(), whole(b["entropy"]).requires_grad_()


def whole(values: torch.Tensor) -> torch.Tensor:
    """(tokens,) outputs of the model: those of the prompts before, the last one beyond the response after, both of no meaning."""
    parts = []
    for row, (p, r) in enumerate(zip(PROMPTS, RESPONSES)):
        parts += [torch.full((p - 1,), -7.5, dtype=values.dtype), values[row, :r], torch.full((1,), -7.5, dtype=values.dtype)]
    return torch.cat(parts)


def jagged_of(flat: torch.Tensor) -> torch.Tensor:
    """The same outputs as verl's engine returns them, nested."""
    offsets = torch.tensor([0, *itertools.accumulate(p + r for p, r in zip(PROMPTS, RESPONSES))])
    return torch.nested.nested_tensor_from_jagged(flat, offsets=offsets)


def close(what: str, got, want, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    got, want = (torch.as_tensor(value, dtype=torch.float64) for value in (got, want))
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")
