"""Shared test set-up: one hypothesis profile, a fixed seed. Validation is what users have, unless a test asks for another level."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores already; threads of several workers only wait for each other


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
