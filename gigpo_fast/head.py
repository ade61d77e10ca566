"""The output head as one value, so that no function can drop one of its features."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .collectives import group_of
from .constants import constant
from .linear_head import check_memory, check_plain_weight
from .sharded_head import shard_columns


class Head(NamedTuple):
    """What a model does from its last hidden state to its logits.

        z = (hidden @ weight.T + bias) * logit_scale
        z = softcap * tanh(z / softcap) if softcap else z
        logits = z[:, :vocab_size] / temperature

    Columns from vocab_size on are padding: they are never sampled and do not enter the softmax.

    With `group_name` the weight is this rank's columns of a vocabulary-parallel head: every rank of that process group passes the same
    tokens and its own columns, in rank order. Log-probs and losses are then those of the whole vocabulary, the same bits on every rank;
    d_hidden arrives summed over the ranks, d_weight and d_bias are those of the rank's own columns.
    """

    weight: Tensor  # (V, H) float32, float64, bfloat16 or float16
    bias: Tensor | None = None  # (V,), dtype of weight
    logit_scale: float = 1.0  # Cohere's; 1 / logits_scaling for Granite
    softcap: float | None = None  # Gemma 2's final_logit_softcapping
    vocab_size: int | None = None  # real columns of a padded weight; of all ranks together, if it is sharded
    group_name: str | None = None  # process_group.group_name of a vocabulary-parallel head


class ReadyHead(NamedTuple):
    """A checked head in the form the ops take."""

    hidden: Tensor  # (N, H), cast as autocast wants
    weight: Tensor  # (V, H) without padding
    bias: Tensor | None
    scale: Tensor  # (N,) compute dtype
    tanh_in: float
    group_name: str = ""
    columns: tuple[int, ...] = (0,)  # of each rank of the group

    @property
    def vocabulary(self) -> int:
        """Real columns of all ranks together."""
        return sum(self.columns) if self.group_name else self.weight.shape[0]


def ready_head(function: str, hidden: Tensor, head: Tensor | Head, temperature: float | Tensor, leading: tuple[int, ...]) -> ReadyHead:
    """Check hidden, head and temperature against each other and flatten them; `leading` is the shape of the tokens."""
    head = head if isinstance(head, Head) else Head(head)
    _check_weight(function, head)
    check_memory(function, "head.weight", head.weight, hidden)
    checks.tensor(
        function,
        "hidden",
        hidden,
        shape=(*leading, head.weight.shape[1]),
        dtypes=checks.FLOATS,
        device=head.weight.device,
        fix="hidden and token_ids need equal leading shapes (nothing is shifted here), and hidden the head's H",
    )
    weight, bias = head.weight, head.bias
    columns: list[int] = []
    if head.group_name is not None:
        columns = shard_columns(function, weight, head.group_name, head.vocab_size)
        real = columns[torch.distributed.get_rank(group_of(head.group_name))]
        weight, bias = weight[:real], None if bias is None else bias[:real]
    elif head.vocab_size is not None:
        real = check_vocab_size(function, "head.vocab_size", head.vocab_size, weight.shape[0])
        weight, bias = weight[:real], None if bias is None else bias[:real]
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):  # no autocast is there for meta tensors
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if hidden.dtype != weight.dtype:
        checks.fail(
            function,
            "hidden",
            f"of the head's dtype {str(weight.dtype).removeprefix('torch.')}",
            hidden,
            "cast one of them, or call under torch.autocast, which casts both",
            error=TypeError,
        )
    scale, tanh_in = row_scale(function, temperature, head.logit_scale, head.softcap, leading, hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return ReadyHead(flat, weight, bias, scale, tanh_in, head.group_name or "", tuple(columns) or (0,))


def row_scale(
    function: str, temperature: float | Tensor, logit_scale: float, softcap: float | None, leading: tuple[int, ...], like: Tensor
) -> tuple[Tensor, float]:
    """(scale (N,), tanh_in): z = scale * x, or scale * tanh(tanh_in * x) with a softcap; scale then softcap then temperature."""
    dtype = checks.compute_dtype(like.dtype)
    logit_scale = checks.number(function, "logit_scale", logit_scale, above=0, fix="the model's config names it; 1.0 for most models")
    outer, tanh_in = logit_scale, 0.0
    if softcap is not None:
        outer = checks.number(function, "softcap", softcap, above=0, fix="Gemma 2 uses 30.0; None for no softcap")
        tanh_in = logit_scale / outer
    tokens = 1
    for size in leading:
        tokens *= size
    if isinstance(temperature, Tensor):
        fix = "a number or a 0-dim tensor for all tokens, or one number a token"
        if temperature.dim() == 0:
            checks.one_number(function, "temperature", temperature, fix=fix)
        else:
            checks.tensor(function, "temperature", temperature, shape=leading, dtypes=checks.FLOATS, device=like.device, fix=fix)
        if checks.values_wanted(temperature) and not bool((temperature > 0).all()):
            checks.fail(
                function, "temperature", "> 0 at every token", f"minimum {float(temperature.min())}", "use the sampler's temperature"
            )
        scale = (outer / constant(function, "temperature", temperature).reshape(-1).to(torch.float64)).to(like.device, dtype)
        return scale.expand(tokens).contiguous(), tanh_in
    temperature = checks.number(function, "temperature", temperature, above=0, fix="use the temperature the tokens were sampled with")
    return torch.full((tokens,), outer / temperature, dtype=dtype, device=like.device), tanh_in


def token_ids_checked(
    function: str, token_ids: Tensor, leading: tuple[int, ...], device: torch.device, vocabulary: int, mask: Tensor | None
) -> Tensor:
    """(N,) int64; every trained id must be in the vocabulary, where values are checked. Ids at untrained tokens may be anything."""
    checks.tensor(
        function,
        "token_ids",
        token_ids,
        shape=leading,
        dtypes=(torch.int64, torch.int32),
        device=device,
        fix="one id a token, already shifted to the logits that predict it",
    )
    flat = token_ids.reshape(-1).to(torch.int64)
    if checks.values_wanted(flat, mask) and flat.numel():
        kept = flat if mask is None else torch.where(mask.reshape(-1), flat, 0)
        low, high = torch.aminmax(kept)
        if low.item() < 0 or high.item() >= vocabulary:
            _fail_token_id(function, kept.view(leading), vocabulary, masked=mask is not None)
    return flat


def _fail_token_id(function: str, token_ids: Tensor, vocabulary: int, *, masked: bool) -> None:
    wrong = (token_ids < 0) | (token_ids >= vocabulary)
    first = wrong.nonzero()[0].tolist()
    found = int(token_ids[tuple(first)])
    if found >= 0:
        fix = "check the tokenizer against the head"
    elif masked:
        fix = f"{found} is padding: take it out of the mask, mask & (token_ids != {found})"
    else:
        fix = f"{found} is padding: pass token_ids.clamp(min=0) and mask the results"
    expected = f"in 0 .. {vocabulary - 1} at every {'trained ' if masked else ''}token"
    checks.fail(function, "token_ids", expected, f"{found} at {first} ({int(wrong.sum())} in all)", fix)


def check_hidden(function: str, hidden: Tensor, mask: Tensor) -> None:
    """Hidden states (N, H) of trained tokens must be finite; what others hold does not matter."""
    if not checks.values_wanted(hidden, mask) or hidden.detach().sum().isfinite().item():
        return
    wrong = ~torch.isfinite(hidden).all(-1) & mask.reshape(-1)
    if bool(wrong.any()):
        places = wrong.view(mask.shape).nonzero()
        checks.fail(
            function,
            "hidden",
            "finite at trained tokens",
            f"NaN or infinity at {places[0].tolist()} ({len(places)} tokens in all)",
            "look for an overflow in the model, or mask such tokens out",
        )


def check_vocab_size(function: str, name: str, vocab_size: int, columns: int) -> int:
    """The number of real columns as an int; refuse a number of real columns that `columns` of logits or weight cannot have."""
    real = checks.whole(vocab_size)
    if real is None or not 0 < real <= columns:
        checks.fail(function, name, f"an int in 1 .. {columns}", vocab_size, "pass the tokenizer's number of tokens")
    return real


def _check_weight(function: str, head: Head) -> None:
    weight = head.weight
    if not isinstance(weight, Tensor):
        checks.fail(
            function,
            "head",
            "the head's weight (V, H) or a Head",
            f"{type(weight).__name__}",
            "pass model.lm_head.weight, or Head(weight=...) with what the model applies to its logits",
            error=TypeError,
        )
    kind = type(weight).__name__
    if kind == "DTensor":
        checks.fail(
            function,
            "head.weight",
            "a plain tensor",
            "a DTensor",
            "call inside LinearPolicyLoss, which FSDP2 unshards, or pass distributed.head_of_dtensor(weight); nothing is gathered silently",
            error=TypeError,
        )
    check_plain_weight(function, "head.weight", weight)
    if weight.dim() != 2 or weight.numel() == 0:
        checks.fail(
            function,
            "head.weight",
            "(V, H), not empty",
            weight,
            "a sharded parameter must be gathered first: deepspeed.zero.GatheredParameters(weight) or FSDP.summon_full_params(module)",
        )
    if weight.dtype not in checks.FLOATS:
        checks.fail(
            function,
            "head.weight",
            "float32, float64, bfloat16 or float16",
            weight,
            "dequantise the head: quantised weights have no gradient",
            error=TypeError,
        )
    if head.bias is not None:
        checks.tensor(
            function,
            "head.bias",
            head.bias,
            shape=(weight.shape[0],),
            dtypes=(weight.dtype,),
            device=weight.device,
            fix="pass lm_head.bias",
        )
