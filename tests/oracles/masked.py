"""What stands at masked tokens: here 0, in many frameworks whatever their last step left there. Such places are not compared."""

import torch
from torch import Tensor

REASON = "masked tokens are 0 here, and not compared: the peer leaves there what its last step made of its padding"


def beyond(mask: Tensor) -> Tensor:
    """Slack without bound where masked, none at trained tokens."""
    return torch.where(mask.bool(), 0.0, float("inf"))
