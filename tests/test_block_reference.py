"""Every block against its float64 twin, in value and all gradients, from log-probs and fused."""

import functools

import pytest
import torch

from gigpo_fast import testing
from gigpo_fast.loss import linear_policy_loss, policy_loss
from tests.block_cases import ALL

CASES = ["holes and an empty row", "on-policy", "garbage at untrained tokens", "sequences that are not rows"]
FUSED = ["holes and an empty row", "packed"]


@pytest.mark.parametrize("name", ALL)
def test_from_log_probs(name):
    loss = functools.partial(policy_loss, objective=ALL[name])
    testing.check_loss(loss, objective=ALL[name], dtypes=[torch.float64], cases=CASES)


@pytest.mark.parametrize("name", ALL)
def test_fused(name):
    loss = functools.partial(linear_policy_loss, objective=ALL[name])
    testing.check_loss(loss, objective=ALL[name], linear=True, dtypes=[torch.float64], cases=FUSED)


@pytest.mark.parametrize("name", ALL)
def test_low_precision(name):
    loss = functools.partial(policy_loss, objective=ALL[name])
    testing.check_loss(loss, objective=ALL[name], dtypes=[torch.float32, torch.bfloat16], cases=["holes and an empty row"])
