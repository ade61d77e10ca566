"""Row kernels in Triton: loads the launchers on first use, and times their configurations where GIGPO_FAST_AUTOTUNE=1 asks for it."""

import os

import torch
from torch import Tensor

from ..kernels import rows_backward as backward
from ..kernels import rows_forward as forward
from ..kernels.configs import Config


def rows_forward(
    logits: Tensor, token_ids: Tensor, scale: Tensor, tanh_in: float, *, squares: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`kernels.rows_forward.rows_forward` in the configuration of `config_for`."""
    config = config_for("rows_forward", logits, tanh_in)
    return forward.rows_forward(logits, token_ids, scale, tanh_in, squares=squares, config=config)


def rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    scale: Tensor,
    tanh_in: float,
    lse: Tensor,
    entropy: Tensor,
    d_log_probs: Tensor,
    d_entropy: Tensor,
    out: Tensor,
    source_rows: Tensor | None = None,
) -> None:
    """`kernels.rows_backward.rows_backward` in the configuration of `config_for`."""
    config = config_for("rows_backward", logits, tanh_in, out.dtype)
    backward.rows_backward(logits, token_ids, scale, tanh_in, lse, entropy, d_log_probs, d_entropy, out, source_rows, config=config)


def config_for(kernel: str, logits: Tensor, tanh_in: float, out_dtype: torch.dtype | None = None) -> Config | None:
    """The fastest configuration where GIGPO_FAST_AUTOTUNE is 1, else None: the fixed table's."""
    asked = os.environ.get("GIGPO_FAST_AUTOTUNE", "0")
    if asked not in ("0", "1"):
        raise ValueError(
            f"{kernel}: GIGPO_FAST_AUTOTUNE must be 0 (the fixed table) or 1 (time each once), got {asked!r}; unset it or correct it"
        )
    if asked == "0" or logits.shape[0] == 0:
        return None
    from ..kernels import autotune

    return autotune.best(kernel, logits, tanh_in, out_dtype=out_dtype)
