"""Anchor ids across ranks: each rank groups its own rows, then the distinct states of all ranks are grouped by owners.

The owner of a state is a rank chosen by the state's fingerprint. Owners receive a fingerprint, a size, a row and a count for each distinct
state of each rank, and the bytes only of those whose fingerprint came more than once: there bytes decide. Rank order is row order, so the
result is the one that a single process would give for the ranks' rows one after the other, however the rows are shared out.
"""

import hashlib
import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks
from ..types import StateGroups
from . import rows as inputs
from .encoding import Unsupported, encode, tensor_bytes
from .sorting import number_keys

FAILED = -1


def across_ranks(states: Any, group: Any, found: StateGroups, process_group: Any, *, hash_bits: int = 128) -> StateGroups:
    """Renumber this rank's groups `found` to global ids; `first_row` counts rows over all ranks in rank order."""
    ranks = Ranks(process_group)
    try:
        keys, error = _keys(states, group, found.first_row.tolist()), None
    except TypeError as failure:  # told to all ranks before it is raised: the others would wait for ever
        keys, error = [], failure
    sizes = ranks.gathered(torch.tensor([found.ids.numel() if error is None else FAILED], dtype=torch.int64, device="cpu")).tolist()
    if FAILED in sizes:
        raise error or RuntimeError("group_states: another rank could not name its groups; its own message says why")

    prints = torch.tensor([_fingerprint(key, hash_bits) for key in keys], dtype=torch.int64, device="cpu").reshape(-1, 2)
    owner = prints[:, 1].remainder(ranks.count)
    order = owner.sort(stable=True).indices
    to_owners = torch.bincount(owner, minlength=ranks.count)
    lengths = torch.tensor([len(key) for key in keys], dtype=torch.int64, device="cpu")
    rows = found.first_row.cpu() + sum(sizes[: ranks.mine])
    mine = torch.stack([*prints.unbind(1), lengths, rows, found.counts.cpu()], 1)[order]

    owned, from_ranks = ranks.exchanged(mine, to_owners)
    wanted = _seen_twice(owned[:, :2])
    asked, _ = ranks.exchanged(wanted.to(torch.int64), from_ranks)
    data = b"".join(keys[index] for index, needed in zip(order.tolist(), asked.tolist()) if needed)
    sent = _per_rank(lengths[order] * asked, to_owners)
    payload = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8, device="cpu")
    received, _ = ranks.exchanged(payload, sent)

    first, merged = _owners_answer(owned, wanted, tensor_bytes(received))
    answer, _ = ranks.exchanged(first, from_ranks)
    everywhere = ranks.gathered(merged)
    everywhere = everywhere[everywhere[:, 0].argsort()]
    # One entry more than there are groups: rows that are not valid (-1) pick the last one and stay -1.
    renumber = torch.full((len(keys) + 1,), -1, dtype=torch.int64, device="cpu")
    renumber[order] = torch.searchsorted(everywhere[:, 0].contiguous(), answer)
    first_row, counts = (column.contiguous().to(found.ids.device) for column in everywhere.unbind(1))
    return StateGroups(renumber.to(found.ids.device)[found.ids], first_row, counts)


class Ranks:
    """The collective operations that grouping needs, on CPU tensors whatever the backend carries."""

    def __init__(self, process_group: Any):
        self.group = process_group
        self.mine, self.count = dist.get_rank(process_group), dist.get_world_size(process_group)
        accelerated = dist.get_backend(process_group) != "gloo"
        self.device = torch.accelerator.current_accelerator() if accelerated and torch.accelerator.is_available() else torch.device("cpu")

    def exchanged(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Send counts[r] rows to each rank r, in order; what came, in rank order, and how many rows from each."""
        came = torch.empty_like(counts, device=self.device)
        dist.all_to_all_single(came, counts.to(self.device), group=self.group)
        out = rows.new_empty((int(came.sum()), *rows.shape[1:]), device=self.device)
        dist.all_to_all_single(out, rows.contiguous().to(self.device), came.tolist(), counts.tolist(), group=self.group)
        return out.cpu(), came.cpu()

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in rank order, on every rank."""
        copies = rows.expand(self.count, *rows.shape).reshape(-1, *rows.shape[1:])
        return self.exchanged(copies, torch.full((self.count,), rows.shape[0], dtype=torch.int64, device="cpu"))[0]


def _owners_answer(owned: Tensor, wanted: Tensor, data: bytes) -> tuple[Tensor, Tensor]:
    """For each entry the first row of its state, and (first row, count) of each state that this rank owns."""
    end = (owned[:, 2] * wanted).cumsum(0)
    bounds = zip((end - owned[:, 2] * wanted).tolist(), end.tolist())
    keys = [(low, high, data[begin:stop]) for (low, high), (begin, stop) in zip(owned[:, :2].tolist(), bounds)]
    classes = number_keys(keys)
    first = torch.full_like(classes.counts, torch.iinfo(torch.int64).max).scatter_reduce_(0, classes.ids, owned[:, 3], "amin")
    counts = torch.zeros_like(classes.counts).index_add_(0, classes.ids, owned[:, 4])
    return first[classes.ids], torch.stack([first, counts], 1)


def _seen_twice(prints: Tensor) -> Tensor:
    if prints.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool, device="cpu")
    _, inverse, counts = prints.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _per_rank(sizes: Tensor, counts: Tensor) -> Tensor:
    """Sums of runs of `sizes`, counts[r] entries long."""
    return torch.zeros_like(counts).index_add_(0, torch.arange(counts.numel(), device="cpu").repeat_interleave(counts), sizes)


def _fingerprint(key: bytes, bits: int) -> tuple[int, int]:
    number = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little") & ((1 << bits) - 1)
    return struct.unpack("<qq", number.to_bytes(16, "little"))


def _keys(states: Any, group: Any, rows: list[int]) -> list[bytes]:
    """What makes a group the same on two ranks: the bytes of its label and of its state, with their types and sizes."""
    if inputs.is_ragged(states):
        values, offsets = states[0].cpu(), states[1].tolist()
        state_of = [values[offsets[row] : offsets[row + 1]] for row in rows]
    else:
        source = states.cpu() if isinstance(states, Tensor) else states
        state_of = [source[row] for row in rows]
    labels = [b""] * len(rows) if group is None else [_label_bytes(group[row]) for row in rows]
    return [label + encode(state) for label, state in zip(labels, state_of)]


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
