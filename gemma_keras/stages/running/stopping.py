"""Stopping a run by a signal: the first one after this step, the second one at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gemma_keras.data.progress import print_progress


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM joins the list, so that the current step finishes and is saved; the second one acts at once."""
    came: list[int] = []
    previous: dict[int, Any] = {}

    def handle(number: int, frame) -> None:
        came.append(number)
        print_progress("stopping after this step; once more to stop at once")
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield came
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
