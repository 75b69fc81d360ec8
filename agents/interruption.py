"""Interruptions that wait for the end of a few lines.

Python can raise KeyboardInterrupt in the middle of the standard library's queues and conditions.
There it leaves a lock held or loses a wake-up, and a program that waits for the other thread hangs.
TensorBoard hands its events to a thread through such a queue.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptions_held"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def interruptions_held() -> Iterator[None]:
    """A context that SIGINT, SIGTERM and SIGHUP do not enter: their handlers run at its end.

    Signals without a handler in Python do what they do anywhere. Outside the main thread, which no
    handler interrupts, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    arrived: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived[:1]:  # Its handler raises, so a second would be lost in any case.
            signal.raise_signal(number)
