"""What an endpoint says about its rate limits, and the gate that keeps all requests back until then."""

import asyncio
import math
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_HOLD = 120.0
"""Seconds that the gate stays shut at most, whatever a header says."""

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", re.ASCII)


class RateGate:
    """Shut for all requests while the endpoint wants none.

    Args:
        tokens: that a request may take; with fewer left the endpoint would refuse it.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._until = 0.0

    async def wait(self) -> None:
        """Returns once the gate is open; requests that waited come spread over a second at most, not in one burst."""
        while (hold := self._until - time.monotonic()) > 0:
            await asyncio.sleep(hold + random.uniform(0, min(hold, 1)))

    def heed(self, status: int, headers: Mapping[str, str]) -> None:
        """Shuts the gate for as long as an answer's headers ask: `Retry-After`, or a limit that is used up."""
        hold = retry_after(headers) if status >= 400 else None
        if hold is None:
            hold = max(
                self._reset(status, headers, "requests", 1), self._reset(status, headers, "tokens", self._tokens)
            )
        self._until = max(self._until, time.monotonic() + min(hold, LONGEST_HOLD))

    @staticmethod
    def _reset(status: int, headers: Mapping[str, str], what: str, needed: int) -> float:
        left = seconds_in(headers.get(f"x-ratelimit-remaining-{what}", ""))
        if left is None:
            left = 0.0 if status == 429 else math.inf
        return (seconds_in(headers.get(f"x-ratelimit-reset-{what}", "")) or 0.0) if left < needed else 0.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) ask for; None: they say nothing."""
    milliseconds = seconds_in(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after", "")
    seconds = seconds_in(text)
    if seconds is None and text:
        try:
            seconds = max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return seconds


def seconds_in(text: str) -> float | None:
    """A length of time in seconds; None where the text gives none.

    >>> [seconds_in(text) for text in ("20ms", "1s", "6m0s", "12", "soon")]
    [0.02, 1.0, 360.0, 12.0, None]
    """
    parts = _PART.findall(text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
