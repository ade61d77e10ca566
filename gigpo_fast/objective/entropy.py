"""The entropy bonus: -coefficient * H_t, the exact entropy over the vocabulary, not a sample's estimate."""

import dataclasses

from torch import Tensor

from .batch import TokenBatch
from .block import Block


@dataclasses.dataclass(frozen=True)
class EntropyBonus(Block):
    """Subtracts coefficient * entropy from each trained token's loss. A negative coefficient penalises entropy."""

    coefficient: float

    def __post_init__(self) -> None:
        if isinstance(self.coefficient, bool) or not isinstance(self.coefficient, (int, float)):
            raise TypeError(f"EntropyBonus: coefficient must be a number, got {self.coefficient!r}; 0.001 is a usual value")
        object.__setattr__(self, "coefficient", float(self.coefficient))

    def loss(self, batch: TokenBatch) -> Tensor:
        """(n,) what the bonus adds to the loss."""
        return -self.coefficient * batch.entropy
