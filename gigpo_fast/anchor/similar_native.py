"""The C++ path of grouping by similarity: texts as code points, one call for all tasks."""

from itertools import accumulate

import torch

from .. import backend, native_memory


def first_fit(texts: list[str], tasks: list[int], threshold: float) -> list[int]:
    """The group of each text: the first of its task whose first text is similar enough, else a new one."""
    assert backend.why_not_native(torch.device("cpu")) is None  # which also loads the library
    offsets = torch.tensor([0, *accumulate(map(len, texts))], dtype=torch.int64, device="cpu")
    labels = torch.tensor(tasks, dtype=torch.int64, device="cpu")
    arguments = (code_points(texts), offsets, labels, threshold)
    return native_memory.call("group_similar_states", torch.ops.gigpo_fast_C.first_fit, *arguments).tolist()


def code_points(texts: list[str]) -> torch.Tensor:
    """(N,) int32, the letters of all texts, one after the other; lone surrogates are letters too."""
    data = "".join(texts).encode("utf-32-le", "surrogatepass")
    return torch.frombuffer(bytearray(data), dtype=torch.int32) if data else torch.empty(0, dtype=torch.int32, device="cpu")
