"""The columns of a vocabulary-parallel head: how many each rank has, asked once for each weight."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import checks
from .collectives import group_of

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> (group name, columns of each rank)


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
        mine = torch.tensor([weight.shape[0]], device=weight.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        _known[weight] = (group_name, [int(columns) for columns in every])
    columns = _known[weight][1]
    if vocab_size is None:
        return list(columns)
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 0 < vocab_size <= sum(columns):
        checks.fail(function, "head.vocab_size", f"an int in 1 .. {sum(columns)}", vocab_size, "count the columns of all ranks together")
    starts = [sum(columns[:rank]) for rank in range(len(columns))]
    real = [min(max(vocab_size - start, 0), width) for start, width in zip(starts, columns)]
    if min(real) == 0:
        got = f"{vocab_size}, which leaves none to rank {real.index(0)} of {columns}"
        checks.fail(function, "head.vocab_size", "such that every rank has a real column", got, "shard the vocabulary more evenly")
    return real
