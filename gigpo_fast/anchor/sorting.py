"""The torch path: a dict on the CPU, sorting on other devices. It needs no compiler.

Sorting works by refinement: rows are in one class as long as nothing tells them apart. Group, length and a 64-bit fingerprint refine
the classes; then every row is compared with the first row of its class, byte for byte. Only if that finds a difference, which honest
states never produce, the words of the states themselves refine the classes, one after the other.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_ids, segment_min, sort_rows, to_rows
from ..types import StateGroups
from .encoding import tensor_bytes
from .hash_key import HashKey
from .rows import Objects, Packed

WORDS_AT_ONCE = 1 << 20  # 8 MiB of states; their byte indices take eight times that


def group(rows: Objects | Packed, labels: Tensor | None, *, key: HashKey) -> StateGroups:
    """Group the rows of one form; labels (S,) int64 on the rows' device, or None for one group. Bytes always decide."""
    if rows.device.type != "cpu":
        return group_by_sorting(rows, labels, hashes=[fingerprints(rows, key)])
    items = rows.items if isinstance(rows, Objects) else _slices(rows)
    return number_keys(items if labels is None else list(zip(labels.tolist(), items)))


def number_keys(keys: list) -> StateGroups:
    """Number hashable keys by first occurrence."""
    checks.process("anchor")
    number = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    return by_first_occurrence(torch.tensor(list(map(number.__getitem__, keys)), dtype=torch.int64, device="cpu"))


def by_first_occurrence(classes: Tensor) -> StateGroups:
    """Renumber dense classes (S,) int64 by first occurrence."""
    if classes.device.type == "cpu":
        checks.process("anchor")
    return number_first_rows(_first_rows(classes))


def number_first_rows(first: Tensor, found: int | None = None) -> StateGroups:
    """Groups from the first row of each row's group, (S,) int64; `found` groups, if known, spares a wait for the device."""
    rows = torch.arange(first.numel(), device=first.device)
    is_first = first == rows
    ids = (is_first.cumsum(0) - 1)[first]
    found = int(is_first.sum()) if found is None else found
    first_row = rows.new_empty(found + 1).scatter_(0, torch.where(is_first, ids, found), rows)[:found]  # the last place is for the rest
    return StateGroups(ids, first_row, rows.new_zeros(found).index_add_(0, ids, torch.ones_like(ids)))


def _slices(rows: Packed) -> list[bytes]:
    data = tensor_bytes(rows.data)
    return [data[start : start + length] for start, length in zip(rows.starts.tolist(), rows.lengths.tolist())]


def group_by_sorting(rows: Packed, labels: Tensor | None, *, hashes: Iterable[Tensor]) -> StateGroups:
    """The same for packed rows on any device, with torch's sort alone. `hashes` are columns (S,) int64 that equal states agree in."""
    classes = torch.zeros_like(rows.starts)
    if labels is not None:
        classes = _refine(classes, labels)
    classes = _refine(classes, rows.lengths)
    filtered = classes
    for column in hashes:
        filtered = _refine(filtered, column)
    if _differ_from_first(rows, filtered):
        longest = int(rows.lengths.max())
        for offset in range(0, longest, 8):
            left = rows.lengths - offset
            classes = _refine(classes, _gather_words(rows.data, rows.starts + offset, left))
        filtered = classes
    return by_first_occurrence(filtered)


def _refine(classes: Tensor, column: Tensor) -> Tensor:
    """Split classes by the values of a column: two rows share a class if they did before and their values are equal."""
    order = sort_rows(column, classes)
    return to_rows(segment_ids(order, classes, column), order)


def _first_rows(classes: Tensor) -> Tensor:
    """The first row of each row's class."""
    numbers = torch.arange(classes.numel(), device=classes.device)
    return segment_min(numbers, classes, classes.numel())[classes]


def fingerprints(rows: Packed, key: HashKey) -> Tensor:
    """A keyed sum over the words of a row, each mixed with its place. Integer sums do not depend on the order of the additions."""
    total = torch.zeros_like(rows.starts)
    for row, place, word in _words(rows):
        total.index_add_(0, row, _mix(word ^ _mix(place + key.seed)))
    total = _mix(total)
    return total if key.bits >= 64 else total & ((1 << key.bits) - 1)


def _differ_from_first(rows: Packed, classes: Tensor) -> bool:
    """True if some row's bytes are not those of the first row of its class. The lengths in a class are equal."""
    first_start = rows.starts[_first_rows(classes)]
    for row, place, word in _words(rows):
        if not torch.equal(word, _gather_words(rows.data, first_start[row] + 8 * place, rows.lengths[row] - 8 * place)):
            return True
    return False


def _words(rows: Packed) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All states as 64-bit words, the last one padded with zeros: (row, place in the row, word), a bounded number at once."""
    ends = ((rows.lengths + 7) // 8).cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    begins = ends - (rows.lengths + 7) // 8
    for chunk in range(0, total, WORDS_AT_ONCE):
        number = torch.arange(chunk, min(chunk + WORDS_AT_ONCE, total), device=ends.device)
        row = torch.searchsorted(ends, number, right=True)
        place = number - begins[row]
        yield row, place, _gather_words(rows.data, rows.starts[row] + 8 * place, rows.lengths[row] - 8 * place)


def _gather_words(data: Tensor, start: Tensor, left: Tensor) -> Tensor:
    """The 8 bytes from each start as one int64; of a state that ends sooner (`left` bytes on), zeros for the rest."""
    place = torch.arange(8, device=data.device)
    inside = place < left[:, None]
    index = (start[:, None] + place).masked_fill_(~inside, 0)
    return data[index].masked_fill_(~inside, 0).view(torch.int64).squeeze(1)


def _mix(word: Tensor) -> Tensor:
    """A bijection of 64-bit words that spreads every bit (the finalizer of splitmix64)."""
    word = (word ^ _shifted(word, 30)) * -0x40A7B892E31B1A47
    word = (word ^ _shifted(word, 27)) * -0x6B2FB644ECCEEE15
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, by: int) -> Tensor:
    return (word >> by) & ((1 << (64 - by)) - 1)  # logical: int64's own shift would drag the sign along
