"""Any policy loss or GiGPO advantage function against the reference, for other projects' CI. Needs torch alone.

    from gigpo_fast import testing
    print(testing.check_loss(my_grpo_loss))         # one line, or an AssertionError that lists what is wrong

A result is right when its error against float64 is at most twice (gradients: three times) that of plain torch with
operands upcast to fp32 and, for low precision, dlogits rounded once; plus a few roundings of the largest entry.
"""

from .advantages import ADVANTAGE_CASES, check_advantages
from .loss_cases import LOSS_CASES
from .losses import check_loss
from .report import Comparison, Report

__all__ = ["ADVANTAGE_CASES", "LOSS_CASES", "Comparison", "Report", "check_advantages", "check_loss"]
