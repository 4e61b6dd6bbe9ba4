"""Progress of long passes over rows."""

import sys
import time
from collections.abc import Callable

Reporter = Callable[[str], None]
"""Takes one line for the person who waits."""


def print_progress(line: str) -> None:
    """Writes a progress line to stderr."""
    print(line, file=sys.stderr, flush=True)


class Pace:
    """Tells every few seconds, and at the end, how far a count is, how fast, and how long it will take.

    Args:
        doing: what is counted, such as "encoded belle".
        total: the last count, where it is known.
    """

    SECONDS = 5.0

    def __init__(self, doing: str, progress: Reporter, total: int = 0):
        self._doing, self._total, self._progress = doing, total, progress
        self._start = self._told = time.monotonic()

    def done(self, count: int) -> None:
        now = time.monotonic()
        if now - self._told >= self.SECONDS:
            self._told = now
            self._tell(count, now)

    def finish(self, count: int, note: str = "") -> None:
        """The last line, however short the pass was."""
        self._tell(count, time.monotonic(), note)

    def _tell(self, count: int, now: float, note: str = "") -> None:
        rate = count / max(now - self._start, 1e-6)
        of = f" of {self._total}" if self._total else ""
        left = f", {(self._total - count) / max(rate, 1e-6):.0f} s left" if count < self._total else ""
        self._progress(f"{self._doing}: {count}{of} rows{note}, {rate:,.0f} rows/s{left}")
