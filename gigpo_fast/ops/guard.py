"""Double backward: refused by name, because the formula of the first backward is not differentiable."""

from typing import Any


def no_double_backward(op: Any, function: str) -> None:
    """Give a backward op an autograd formula that raises. Without one, a second backward would silently be 0 or wrong."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            f"{function}: gradients of gradients are not available, got a backward through its backward; "
            "do not use create_graph=True through this loss, or compute log-probs with plain torch"
        )

    op.register_autograd(refuse)
