"""Counts the memory of the tensors that operations allocate: what a peak-memory formula is held against."""

import contextlib
import weakref
from types import SimpleNamespace

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counter(TorchDispatchMode):
    """Follows storages: one is added when an operation first returns it, and taken away when the last tensor on it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = SimpleNamespace(now=0, peak=0, largest=0)
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)}
        definition = OPDEFS.get(function.name())
        if definition is None:
            result = function(*arguments, **(keywords or {}))
        else:  # a custom op in Python: run its body under this mode, or nothing inside it would be seen
            with self:
                result = definition._init_fn(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), leaf.element_size(), known)
        return result

    def _add(self, storage, item: int, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.seen.now += storage.nbytes()
        self.seen.peak = max(self.seen.peak, self.seen.now)
        self.seen.largest = max(self.seen.largest, storage.nbytes() // item)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.seen.now -= self.alive.pop(key, 0)


@contextlib.contextmanager
def counted():
    """`with counted() as seen:` then seen.peak (bytes alive at once), seen.now (still alive), seen.largest (elements of one tensor)."""
    counter = _Counter()
    with counter:
        yield counter.seen
