"""The ranks of a vocabulary-parallel head: how many columns each has, and whether all score the same tokens, asked once for each weight."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import checks
from .collectives import group_of, told

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> (group name, columns of each rank)
_compared: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> the group whose ranks had the same tokens


def shard_columns(function: str, weight: Tensor, group_name: str, vocab_size: int | None) -> list[int]:
    """Real columns of each rank's weight (V_rank, H), in the order of the group's ranks; padding beyond `vocab_size` does not count.

    A collective of the group the first time a weight is seen: all ranks call it together.
    """
    if not (dist.is_available() and dist.is_initialized()):
        checks.fail(
            function, "head.group_name", "None without torch.distributed", group_name, "call torch.distributed.init_process_group first"
        )
    try:
        group = group_of(group_name)
    except (RuntimeError, KeyError, ValueError, TypeError):
        checks.fail(function, "head.group_name", "the name of a process group", group_name, "pass process_group.group_name")
    if _known.get(weight, ("", []))[0] != group_name:
        _known[weight] = (group_name, told(weight.shape[0], group))
    columns = _known[weight][1]
    if vocab_size is None:
        return list(columns)
    real_columns = checks.whole(vocab_size)
    if real_columns is None or not 0 < real_columns <= sum(columns):
        checks.fail(function, "head.vocab_size", f"an int in 1 .. {sum(columns)}", vocab_size, "count the columns of all ranks together")
    starts = [sum(columns[:rank]) for rank in range(len(columns))]
    real = [min(max(real_columns - start, 0), width) for start, width in zip(starts, columns)]
    if min(real) == 0:
        got = f"{vocab_size}, which leaves none to rank {real.index(0)} of {columns}"
        checks.fail(function, "head.vocab_size", "such that every rank has a real column", got, "shard the vocabulary more evenly")
    return real


def check_same_tokens(function: str, weight: Tensor, group_name: str, token_ids: Tensor, mask: Tensor | None = None) -> None:
    """Refuse ranks that score different (trained) tokens (N,): a head that FSDP sharded is no vocabulary-parallel one.

    A collective of the group the first time a weight is seen, and at every call under full validation.
    """
    if torch.compiler.is_compiling() or (_compared.get(weight) == group_name and not checks.full_validation()):
        return
    kept = token_ids if mask is None else torch.where(mask, token_ids, -1)
    place = torch.arange(kept.numel(), device=kept.device)
    mine = kept.numel(), int(((kept + 2) * (place * -7046029254386353131 | 1)).sum())  # wraps: a fingerprint of ids and places
    every = told(mine, group_of(group_name))
    if len(set(every)) > 1:
        got = "others, " + ", ".join(f"{count} on rank {rank}" for rank, (count, _) in enumerate(every))
        fix = "a head sharded by FSDP goes into LinearPolicyLoss, fully_shard'ed itself; tensor-parallel ranks all take the same batch"
        checks.fail(function, "token_ids", "the same on all ranks of a vocabulary-parallel head", got, fix)
    _compared[weight] = group_name
