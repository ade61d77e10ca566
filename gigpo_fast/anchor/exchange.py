"""Anchor ids across ranks: each rank groups its own rows, then all ranks group the distinct states of all.

Only one representative of each group travels, with its whole bytes, so that bytes decide here too. Rank order is row order: the
result is the one that a single process would give for the ranks' rows one after the other.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks
from ..types import StateGroups
from . import rows as inputs
from .encoding import Unsupported, encode
from .sorting import number_keys


def across_ranks(states: Any, group: Any, found: StateGroups, process_group: Any) -> StateGroups:
    """Renumber this rank's groups `found` to global ids; `first_row` counts rows over all ranks in rank order."""
    ranks = dist.get_world_size(process_group)
    mine = (_keys(states, group, found.first_row.tolist()), found.first_row.tolist(), found.counts.tolist(), found.ids.numel())
    gathered: list = [None] * ranks
    dist.all_gather_object(gathered, mine, group=process_group)

    merged = number_keys([key for keys, *_ in gathered for key in keys])
    rows_before, global_rows = 0, []
    for _, first_row, _, size in gathered:
        global_rows += [rows_before + row for row in first_row]
        rows_before += size
    all_counts = torch.tensor([count for _, _, counts, _ in gathered for count in counts], dtype=torch.int64)
    counts = torch.zeros_like(merged.counts).index_add_(0, merged.ids, all_counts)

    before = sum(len(keys) for keys, *_ in gathered[: dist.get_rank(process_group)])
    # One entry more than there are groups: rows that are not valid (-1) pick the last one and stay -1.
    renumber = torch.cat([merged.ids[before : before + found.first_row.numel()], torch.tensor([-1])]).to(found.ids.device)
    first_row = torch.tensor(global_rows, dtype=torch.int64)[merged.first_row]
    return StateGroups(renumber[found.ids], first_row.to(found.ids.device), counts.to(found.ids.device))


def _keys(states: Any, group: Any, rows: list[int]) -> list[tuple[bytes, bytes]]:
    """What makes a group the same on two ranks: the bytes of its label and of its state, with their types."""
    if inputs.is_ragged(states):
        values, offsets = states[0].cpu(), states[1].tolist()
        state_of = [values[offsets[row] : offsets[row + 1]] for row in rows]
    else:
        source = states.cpu() if isinstance(states, Tensor) else states
        state_of = [source[row] for row in rows]
    labels = [b""] * len(rows) if group is None else [_label_bytes(group[row]) for row in rows]
    return list(zip(labels, map(encode, state_of)))


def _label_bytes(label: Any) -> bytes:
    try:
        return encode(label if isinstance(label, (str, bytes)) or not hasattr(label, "item") else label.item())
    except Unsupported:
        checks.fail(
            "group_states",
            "group",
            "str, int or other plain values when process_group is given",
            label,
            "label groups by integers or strings, which mean the same on every rank",
            error=TypeError,
        )
