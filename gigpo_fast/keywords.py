"""The keywords that named losses hand on: shown one by one to type checkers and inspect.signature, refused by name where they are none."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypedDict, TypeVar

from torch import Tensor

from .distributed import Denominator
from .plan import Plan
from .recipes import names
from .recipes.base import entry_of

P = ParamSpec("P")
R = TypeVar("R")


class _Shared(TypedDict, total=False):
    old_log_probs: Tensor | None
    ref_log_probs: Tensor | None
    extras: dict[str, Tensor] | None
    sequence_ids: Tensor | None
    denominator: float | Tensor | Denominator | None


class TokenKeywords(_Shared, total=False):
    """Of policy_loss, but for the objective."""

    entropy: Tensor | None


class LinearKeywords(_Shared, total=False):
    """Of linear_policy_loss, but for the objective."""

    temperature: float | Tensor
    plan: Plan | None
    chunk_bytes: int | None
    invariant: bool
    weight_grad_out: Tensor | None


def takes(whole: Callable, name: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show the keywords of `whole` but for the objective, which a function with **keywords hands on; `name` is its recipe."""
    keywords = [p for p in inspect.signature(whole).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "objective"]

    def show(function: Callable[P, R]) -> Callable[P, R]:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        known = frozenset(p.name for p in (*own, *keywords))

        @functools.wraps(function)
        def shown(*given: P.args, **rest: P.kwargs) -> R:
            for key in rest:
                if key not in known:
                    _refuse(function.__qualname__.removesuffix(".forward"), key, whole.__name__, name, [p.name for p in keywords])
            return function(*given, **rest)

        signature = inspect.signature(function)
        shown.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return shown

    return show


def _refuse(function: str, key: Any, whole: str, name: str | None, keywords: list[str]) -> NoReturn:
    with_it = [other for other in ([name] if name else []) + names() if key in entry_of(other).settings]
    if key == "objective":
        raise TypeError(f"{function}: objective must be left out, it has one; call {whole}(..., objective=...)")
    if with_it:
        made = f'recipes.recipe("{with_it[0]}", {key}=...).objective'
        call = f"{whole}(..., objective={made})" if name else f"{function}({'lm_head, ' if 'Linear' in function else ''}{made})"
        raise TypeError(f"{function}: {key} must be set where the objective is made, got it as a keyword; write {call}")
    raise TypeError(f"{function}: keywords must be some of {keywords}, got {key!r}; correct the name or leave it out")
