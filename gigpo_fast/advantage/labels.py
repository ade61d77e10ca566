"""Labels made of labels: one number for each combination."""

import torch
from torch import Tensor

from .. import checks
from ..segments import dense_labels
from . import arguments


def combined_labels(
    *labels: Tensor | list,  # (S,) int64 or a list of str or int each
) -> Tensor:  # (S,) int64
    """A number for every combination of labels: rows get the same number if and only if all their labels are equal.

    The same, slowly: `torch.stack(labels, 1).unique(dim=0, return_inverse=True)[1]`

    For groups that are more than a task: (task, agent) for agent-wise statistics, (task, turn), (task, data source).
    Source: Dr. MAS (arXiv 2602.08847) normalises per agent; prime-rl's hierarchical GRPO per (agent, episode).
    """
    function = "combined_labels"
    if not labels:
        checks.fail(function, "labels", "one label a row, or several", (), "pass the label tensors one after the other")
    size = labels[0].shape[0] if isinstance(labels[0], Tensor) else len(labels[0])
    device = next((label.device for label in labels if isinstance(label, Tensor)), torch.device("cpu"))
    valid = torch.ones(size, dtype=torch.bool, device=device)
    return dense_labels(*(arguments.labels(function, f"labels[{i}]", label, valid) for i, label in enumerate(labels)))
