"""Signals that a process answers for as long as a block of its code runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(notice: Callable[[int], object], *numbers: int) -> Iterator[None]:
    """Call ``notice(number)`` for signals that come within the block; before and after it they do what they did.

    Outside the main thread, which alone may handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _: notice(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
