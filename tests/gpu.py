"""Where the GPU tests run: on CUDA, or, to try the tests themselves, on the device named by GIGPO_FAST_GPU_TESTS_ON."""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("GIGPO_FAST_GPU_TESTS_ON", "cuda"))
ON_GPU = DEVICE.type == "cuda"
marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
real_gpu = pytest.mark.skipif(not ON_GPU, reason="says something on a real GPU only")


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, dtype)


def randint(high: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Integers in [0, high), the same on every device."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
