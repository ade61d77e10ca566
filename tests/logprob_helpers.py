"""The paths, dtypes and heads over which the tests of log-probs and of token statistics run."""

import pytest
import torch

from gigpo_fast import backend

NATIVE = backend.why_not_native(torch.device("cpu")) is None
PATHS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the C++ rows are not built"))]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HEADS = {"plain": {}, "scaled": {"logit_scale": 1.7, "temperature": 0.6}, "softcap": {"softcap": 4.0, "temperature": 1.3},
         "all": {"logit_scale": 0.5, "softcap": 3.0, "temperature": 0.8, "vocab_size": 31}}  # fmt: skip


def compute(dtype):
    """The dtype of all arithmetic on values of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
