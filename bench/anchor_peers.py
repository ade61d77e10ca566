"""Who else numbers equal states, each at its best setting for what it is given, and the states to number.

A peer takes the states and returns one number a row, equal for equal states; one that is not installed says how to install it.
"""

import collections
import os
import random
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from gigpo_fast.anchor.hash_key import hash_key

LETTERS = np.frombuffer(b"abcdefgh", dtype=np.uint8)
SEED = 11  # what crafted collisions know


class Size(NamedTuple):
    """How many states there are, of how many bytes."""

    states: int
    width: int

    def __str__(self) -> str:
        return f"{self.states:,} states of {self.width:,} B"


# ---- which state each row has, and what the states are ------------------------------------------------------------------------------


def uniform(states: int, draw: np.random.Generator) -> np.ndarray:
    """A tenth of the rows are different, drawn alike."""
    return draw.integers(0, max(1, states // 10), states)


def zipf(states: int, draw: np.random.Generator) -> np.ndarray:
    """A few states are most rows, and many come once."""
    return np.minimum(draw.zipf(1.3, states), states) - 1


def equal(states: int, draw: np.random.Generator) -> np.ndarray:
    return np.zeros(states, dtype=np.int64)


def different(states: int, draw: np.random.Generator) -> np.ndarray:
    return draw.permutation(states)


DISTRIBUTIONS = {function.__name__: function for function in (uniform, zipf, equal, different)}


def rows_of(size: Size, numbers: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(states, width) uint8 in ASCII letters: row i is text number numbers[i]. Texts differ at both ends, so no prefix tells them apart."""
    pool = LETTERS[draw.integers(0, len(LETTERS), (int(numbers.max()) + 1, size.width), dtype=np.uint8)]
    digits = min(size.width, 8)
    for place in range(digits):
        pool[:, size.width - 1 - place] = LETTERS[np.arange(len(pool)) >> 3 * place & 7]
    return pool[numbers]


def crafted(size: Size) -> np.ndarray:
    """(states, 64) uint8: a tenth of the rows are different, all of one place in a host's table under SEED (`known_seed`)."""
    from tests.anchor_crafted import crafted_for_tables

    pool = np.frombuffer(b"".join(crafted_for_tables(SEED, size.states // 10)), dtype=np.uint8).reshape(-1, 64)
    return pool[np.random.default_rng(0).integers(0, len(pool), size.states)]


class known_seed:
    """A `with` block in which grouping uses SEED, as if somebody had found it out."""

    def __enter__(self):
        self.before = os.environ.get("GIGPO_FAST_HASH_SEED")
        self._set(str(SEED))

    def __exit__(self, *error):
        self._set(self.before)

    def _set(self, seed: str | None) -> None:
        os.environ.pop("GIGPO_FAST_HASH_SEED", None)
        if seed is not None:
            os.environ["GIGPO_FAST_HASH_SEED"] = seed
        hash_key.cache_clear()


def texts(rows: np.ndarray) -> list[str]:
    """The rows as str objects of their own, every time new ones: a str keeps its hash, so a second round on the same would time less."""
    width, data = rows.shape[1], rows.tobytes().decode("ascii")
    found = [data[start : start + width] for start in range(0, len(data), width)]
    random.Random(0).shuffle(order := list(range(0, len(found), 64)))
    return [found[index] for start in order for index in range(start, min(start + 64, len(found)))]  # not all in the order of memory


# ---- lists of str --------------------------------------------------------------------------------------------------------------------


def by_dict(states: list[str]):
    number: dict[str, int] = {}
    return [number.setdefault(state, len(number)) for state in states]


def by_xxhash_and_dict(states: list[str]):
    digest = pytest.importorskip("xxhash", reason="pip install xxhash").xxh3_128_digest
    number: dict[bytes, int] = {}
    return [number.setdefault(digest(state.encode()), len(number)) for state in states]


def by_pandas(states: list[str]):
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    return pandas.factorize(np.array(states, dtype=object))[0]


def by_polars(states: list[str]):
    polars = pytest.importorskip("polars", reason="pip install polars")
    return polars.Series(states).cast(polars.Categorical).to_physical().to_numpy()


def by_pyarrow(states: list[str]):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    return pyarrow.array(states).dictionary_encode().indices.to_numpy()


def by_numpy(states: list[str]):
    return np.unique(np.array(states, dtype=object), return_inverse=True)[1]


LIST_PEERS: dict[str, Callable] = {
    "dict": by_dict,
    "xxh3 + dict": by_xxhash_and_dict,
    "pandas.factorize": by_pandas,
    "polars Categorical": by_polars,
    "pyarrow dictionary_encode": by_pyarrow,
    "numpy.unique": by_numpy,
}


def by_public_steps(states: list[str], group: list[str]) -> np.ndarray:
    """What GiGPO's public implementation does: task by task, rows found by comparing all labels; a dictionary, and a uuid a state."""
    labels, observations, names = np.array(group, dtype=object), np.array(states, dtype=object), np.empty(len(states), dtype=object)
    for task in np.unique(labels):
        places = np.where(labels == task)[0]
        members = collections.defaultdict(list)
        for place, observation in zip(places, observations[places]):
            members[_hashable(observation)].append(place)
        for rows in members.values():
            name = str(uuid.uuid4())
            for row in rows:
                names[row] = name
    return names


def _hashable(value):
    if isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, np.ndarray):
        return tuple(value.flatten())
    raise TypeError(type(value).__name__)


# ---- rows of a buffer: (states, width) uint8, NumPy's or torch's ---------------------------------------------------------------------


def by_dict_of_bytes(rows: np.ndarray):
    width, data = rows.shape[1], rows.tobytes()
    number: dict[bytes, int] = {}
    return [number.setdefault(data[start : start + width], len(number)) for start in range(0, len(data), width)]


def by_xxhash_of_rows(rows: np.ndarray):
    digest = pytest.importorskip("xxhash", reason="pip install xxhash").xxh3_128_digest
    width, data = rows.shape[1], memoryview(rows).cast("B")
    number: dict[bytes, int] = {}
    return [number.setdefault(digest(data[start : start + width]), len(number)) for start in range(0, len(data), width)]


def by_pyarrow_of_rows(rows: np.ndarray):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    kind = pyarrow.binary(rows.shape[1])
    return (
        pyarrow.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pyarrow.py_buffer(rows)]).dictionary_encode().indices.to_numpy()
    )


def by_pandas_of_rows(rows: np.ndarray):
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    return pandas.factorize(rows.view(f"V{rows.shape[1]}").reshape(-1).astype(object))[0]


def by_numpy_of_rows(rows: np.ndarray):
    return np.unique(rows.view(f"S{rows.shape[1]}").reshape(-1), return_inverse=True)[1]


def by_torch_of_rows(rows: torch.Tensor):
    return torch.unique(rows, dim=0, return_inverse=True)[1]


BUFFER_PEERS: dict[str, Callable] = {
    "dict": by_dict_of_bytes,
    "xxh3 + dict": by_xxhash_of_rows,
    "pandas.factorize": by_pandas_of_rows,
    "pyarrow dictionary_encode": by_pyarrow_of_rows,
    "numpy.unique": by_numpy_of_rows,
    "torch.unique": by_torch_of_rows,
}


def same_groups(theirs, ours: torch.Tensor) -> bool:
    """Whether two numberings part the rows alike."""
    return by_dict(theirs.tolist() if hasattr(theirs, "tolist") else theirs) == ours.tolist()
