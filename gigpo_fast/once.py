"""What is made when first wanted, in one piece, whichever thread wants it first."""

import functools
import threading
from collections.abc import Callable
from typing import Any


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Call `make` when its value is first wanted, and never twice, also where several threads want it at the same time."""
    made, lock = [], threading.Lock()

    @functools.wraps(make)
    def get():
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return get
