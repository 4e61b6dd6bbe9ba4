"""Stopping a run by a signal: the first one after this step, the second one at once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether a signal asked to stop, and which."""

    signal = 0

    def __call__(self) -> bool:
        return self.signal != 0


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM lets the current step finish and be saved; the second one acts at once."""
    stop = Stop()
    previous: dict[int, Any] = {}

    def handle(number: int, frame) -> None:
        stop.signal = number
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
