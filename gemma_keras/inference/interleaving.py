"""Requests that are answered in groups, a piece of work at a time between the steps of others: searches and scoring."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from gemma_keras.config.errors import UserError
from gemma_keras.inference.delivery import INTERRUPTED, ActiveSequence
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.scoring import ActiveScore
from gemma_keras.models.forward import Params

A = TypeVar("A", bound=ActiveSequence | ActiveScore)
Work = Callable[[Params, PrefixCache | None, Sequence[Sequence[A]]], Iterator[None]]
"""Answers the members of a group, each as soon as it can be, and yields after every piece of work."""


class GroupRunner(Generic[A]):
    """Answers requests group by group. A member of a group is the samples of one request.

    Args:
        work: what answers a group.
        rows_of: how many rows a request takes.
        max_rows: of a group.
        by_token: whether a piece of work is one token, of which a step takes several.
    """

    def __init__(self, work: Work, rows_of: Callable[[Any], int], max_rows: int, *, by_token: bool = False):
        self._work, self._rows_of, self._max_rows, self._by_token = work, rows_of, max_rows, by_token
        self._pending: list[Sequence[A]] = []
        self._group: list[Sequence[A]] = []  # those at work that are not done
        self._running: Iterator[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is running or waits."""
        return bool(self._pending or self._group)

    def add(self, member: Sequence[A]) -> None:
        """Lets a request wait for its group."""
        self._pending.append(member)

    def cancel(self, active: A) -> None:
        """Takes a request out, all of its samples."""
        self._pending = [member for member in self._pending if active not in member]
        self._group = [member for member in self._group if active not in member]
        if not self._group:
            self._running = None

    def abandon(self) -> None:
        """Ends all that runs or waits with an error, for whoever still looks at it."""
        for active in (active for member in self._pending + self._group for active in member):
            active.error = UserError(INTERRUPTED)

    def step(self, params: Params, prefixes: PrefixCache | None, steps: int) -> None:
        """One piece of work, or `steps` tokens.

        Where it fails, each member of the group is tried again alone; one that fails alone gets the error.
        """
        self._group = self._group or self._next_group()
        try:
            self._running = self._running or self._work(params, prefixes, list(self._group))
            for _ in range(steps if self._by_token else 1):
                if next(self._running, self) is self:
                    assert all(active.done for member in self._group for active in member)
                    break
        except Exception as error:
            self._begin_again(prefixes, error)
        except BaseException:
            self._begin_again(prefixes)
            raise
        self._group = [member for member in self._group if not all(active.done for active in member)]
        if not self._group:
            self._running = None

    def _begin_again(self, prefixes: PrefixCache | None, error: Exception | None = None) -> None:
        if prefixes is not None:
            prefixes.clear()
        again = [member for member in self._group if not all(active.done for active in member)]
        self._group, self._running = [], None
        for active in (active for member in again for active in member):
            if error is not None and len(again) == 1:
                active.error = error
            active.suspect |= error is not None
        if len(again) > 1 or error is None:
            self._pending = again + self._pending

    def _next_group(self) -> list[Sequence[A]]:
        """The member that waits longest, and those whose prompts have the likest lengths."""
        first, *others = self._pending
        length = len(first[0].request.prompt)
        others = [] if first[0].suspect else [member for member in others if not member[0].suspect]
        group, most = [first], self._rows_of(first[0].request)
        for member in sorted(others, key=lambda member: abs(len(member[0].request.prompt) - length)):
            most = max(most, self._rows_of(member[0].request))
            if (len(group) + 1) * most > self._max_rows:
                break
            group.append(member)
        self._pending = [member for member in self._pending if member not in group]
        return group
