"""Row kernels in Triton: loads the launchers on first use."""

from ..kernels.rows_backward import rows_backward
from ..kernels.rows_forward import rows_forward

__all__ = ["rows_backward", "rows_forward"]
