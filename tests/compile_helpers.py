"""What the tests of torch.compile share: a clean compiler for each test, and how often something was compiled."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Import it into a test module: nothing compiled before or behind a test counts there."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that counts how often a graph is compiled."""

    def __init__(self, name):
        self.name, self.graphs = name, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend(self.name)(graph, inputs)
