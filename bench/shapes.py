"""The one table of shapes, and the batches made from it: contiguous turns, idle rows, tokens sampled from the policy, some clipped."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CLIP = 0.2
MARGIN = 0.06  # no log-ratio is nearer to a clip bound than this: which side a token is on may not hang on a rounded logit
LOGIT_SCALE = 2.0  # standard deviation of the logits: peaked enough that sampled tokens have the log-probs of a trained model
SAMPLED_AT_ONCE = 1024


class Shape(NamedTuple):
    """A batch of rows x tokens, hidden size H, vocabulary V."""

    name: str
    rows: int
    tokens: int
    hidden: int
    vocabulary: int
    trained: float = 1.0  # m: this share of the tokens is trained, in two contiguous turns a row (or all of it)
    active: float = 1.0  # a/m: this share of the rows, so of the trained tokens, has an advantage other than 0
    dtype: str = "float32"
    frozen: bool = False  # the head wants no gradient

    @property
    def scored(self) -> int:
        """How many tokens are trained."""
        return self.rows * 2 * round(self.trained * self.tokens / 2)

    @property
    def idle_rows(self) -> int:
        return round((1 - self.active) * self.rows)


def grid(base: Shape) -> tuple[Shape, ...]:
    """The base with every pair of trained share and active share."""
    return tuple(
        base._replace(name=f"{base.name} m{trained:g} a{active:g}", trained=trained, active=active)
        for trained in (1.0, 0.5, 0.25)
        for active in (1.0, 0.7, 0.3)
    )


def _variant(base: Shape, name: str, **changes) -> Shape:
    return base._replace(name=f"{base.name} {name}", **changes)


LINEAR, SCORES, LIKELIHOOD, LOGITS = "linear_policy_loss", "linear_token_log_probs", "negative_log_likelihood", "token_log_probs"

_dense = Shape("dense", 32, 128, 512, 32000)
_agent = Shape("agent", 32, 128, 512, 32000, 0.35, 0.75)
_small = Shape("small", 20, 64, 256, 16000)  # 20 rows: shares of 0.7 and 0.3 are whole rows
_tiny = Shape("tiny", 10, 16, 16, 120)

_h100 = Shape("8k", 32, 256, 4096, 151936, dtype="bfloat16")
_gpu_dense = (
    Shape("8k H2048", 32, 256, 2048, 128256, dtype="bfloat16"),
    Shape("8k H5120", 32, 256, 5120, 151936, dtype="bfloat16"),
    Shape("16k", 32, 512, 4096, 128256, dtype="bfloat16"),
    Shape("32k", 32, 1024, 2048, 151936, dtype="bfloat16"),  # N * V is past 2^31
)
_gpu_agent = (
    Shape("16k agent", 32, 512, 4096, 151936, 0.35, 0.75, "bfloat16"),
    Shape("32k agent", 32, 1024, 5120, 151936, 0.35, 0.75, "bfloat16"),
)


def _frozen_and_half(base: Shape) -> tuple[Shape, ...]:
    return _variant(base, "frozen", frozen=True), _variant(base, "bf16", dtype="bfloat16")


# table -> problem -> shapes
TABLES: dict[str, dict[str, tuple[Shape, ...]]] = {
    "tiny": {
        LINEAR: (_tiny, _variant(_tiny, "agent", trained=0.5, active=0.7), *_frozen_and_half(_tiny)),
        SCORES: (_variant(_tiny, "agent", trained=0.5, active=0.7), *_frozen_and_half(_tiny)),
        LIKELIHOOD: (_tiny,),
        LOGITS: (_variant(_tiny, "agent", trained=0.5, active=0.7),),
    },
    "cpu": {
        LINEAR: (_dense, _agent, *grid(_small), *_frozen_and_half(_small)),
        SCORES: (_small, _variant(_small, "a0.3", active=0.3), *_frozen_and_half(_small)),
        LIKELIHOOD: (_small,),
        LOGITS: (_small, _variant(_small, "bf16", dtype="bfloat16")),
    },
    "gpu": {
        LINEAR: (*grid(_h100), *_gpu_dense, *_gpu_agent, _variant(_h100, "frozen", frozen=True)),
        SCORES: (_h100, _variant(_h100, "a0.3", active=0.3), _variant(_h100, "frozen", frozen=True), *_gpu_dense[:1]),
        LIKELIHOOD: (_h100, *_gpu_dense),
        LOGITS: (_h100, _variant(_h100, "fp32", dtype="float32"), *_gpu_dense[-1:]),
    },
}


class Batch(NamedTuple):
    """Inputs of one step of a policy loss."""

    hidden: Tensor  # (B, T, H), requires grad
    weight: Tensor  # (V, H), requires grad unless frozen
    token_ids: Tensor  # (B, T) int64
    advantages: Tensor  # (B, T) float32, one number a row, 0 in idle rows
    mask: Tensor  # (B, T) bool, the same number of True in every row
    old_log_probs: Tensor  # (B, T) float32

    @property
    def arguments(self) -> tuple:
        return (self,)

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {name: value for name, value in (("hidden", self.hidden), ("weight", self.weight)) if value.requires_grad}


class Scored(NamedTuple):
    """Trained tokens only, and a gradient for each of their log-probs."""

    hidden: Tensor  # (n, H), requires grad
    weight: Tensor  # (V, H), requires grad unless frozen
    token_ids: Tensor  # (n,) int64
    upstream: Tensor  # (n,) float32, 0 in idle rows

    @property
    def arguments(self) -> tuple:
        return self.hidden, self.weight, self.token_ids

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {name: value for name, value in (("hidden", self.hidden), ("weight", self.weight)) if value.requires_grad}


class Rows(NamedTuple):
    """Logits of the trained tokens, and a gradient for each log-prob."""

    logits: Tensor  # (n, V), requires grad
    token_ids: Tensor  # (n,) int64
    upstream: Tensor  # (n,) float32

    @property
    def arguments(self) -> tuple:
        return self.logits, self.token_ids

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"logits": self.logits}


def policy_batch(shape: Shape, device: torch.device) -> Batch:
    """A random batch of the shape; old log-probs lie around the policy's, so that some tokens are clipped."""
    generator = torch.Generator(device).manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, device=device)  # noqa: E731
    dtype = getattr(torch, shape.dtype)
    hidden = normal(shape.rows, shape.tokens, shape.hidden).to(dtype)
    weight = (normal(shape.vocabulary, shape.hidden) * (LOGIT_SCALE / shape.hidden**0.5)).to(dtype)
    token_ids, log_probs = (found.view(shape.rows, shape.tokens) for found in _sampled(hidden.flatten(0, 1), weight, generator))
    advantages = normal(shape.rows, 1) + 0.5  # not centred: a loss near 0 would have no digits to compare
    advantages[: shape.idle_rows] = 0
    old_log_probs = log_probs - _away_from_bounds(0.2 * normal(shape.rows, shape.tokens))
    advantages = advantages.expand(shape.rows, shape.tokens).contiguous()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_(not shape.frozen)
    return Batch(hidden, weight, token_ids, advantages, _turns(shape, device), old_log_probs)


def scored_batch(shape: Shape, device: torch.device) -> Scored:
    """The trained tokens of `policy_batch`, with an upstream gradient that is 0 in idle rows."""
    batch = policy_batch(shape, device)
    upstream = (batch.advantages * (1 + batch.old_log_probs.abs()))[batch.mask] / shape.scored
    hidden = batch.hidden.detach()[batch.mask].requires_grad_()
    return Scored(hidden, batch.weight, batch.token_ids[batch.mask], upstream)


def logits_batch(shape: Shape, device: torch.device) -> Rows:
    """The logits of `scored_batch`, in its dtype."""
    batch = scored_batch(shape, device)
    with torch.no_grad():
        logits = batch.hidden @ batch.weight.T
    return Rows(logits.requires_grad_(), batch.token_ids, batch.upstream)


def _turns(shape: Shape, device: torch.device) -> Tensor:
    mask = torch.full((shape.rows, shape.tokens), shape.trained == 1, device=device)
    turn = round(shape.trained * shape.tokens / 2)
    for start in (shape.tokens // 4, 3 * shape.tokens // 4) if shape.trained < 1 else ():
        mask[:, start : start + turn] = True
    return mask


def _sampled(hidden: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids drawn from softmax(hidden @ weight.T), as a rollout draws them, and their log-probs in float32."""
    ids, log_probs, wide = [], [], weight.float()
    for rows in hidden.split(SAMPLED_AT_ONCE):
        logits = rows.float() @ wide.T
        noise = torch.empty_like(logits).exponential_(generator=generator)  # the largest of z - log noise is a draw from softmax(z)
        drawn = (logits - noise.log_()).argmax(1)
        ids.append(drawn)
        log_probs.append(logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(ids), torch.cat(log_probs)


def _away_from_bounds(log_ratio: Tensor) -> Tensor:
    for bound in (math.log(1 - CLIP), math.log(1 + CLIP)):
        distance = log_ratio - bound
        log_ratio = torch.where(distance.abs() < MARGIN, bound + MARGIN * torch.where(distance < 0, -1.0, 1.0), log_ratio)
    return log_ratio
