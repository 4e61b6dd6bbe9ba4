"""The file that keeps what an endpoint answered, so that nothing is asked, or paid for, twice."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gemma_keras.config.errors import UserError

GROUP = 50
"""Answers after which what was put is written; with those of the client's `COMMIT_SECONDS`, what a killed process may lose."""


class CachedAnswer(NamedTuple):
    """An answer and what it cost in tokens, all attempts together; 0 where the server does not say."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class AnswerCache:
    """Answers by key in an SQLite file that several processes may use at once.

    Its methods may be called from several threads, by turns.

    Args:
        path: the file; where it is missing it is made, with its folder, for the first answer.

    Raises:
        UserError: here and in every method: the file is damaged, locked for long, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: dict[str, CachedAnswer] = {}
        self._file: sqlite3.Connection | None = None
        with self._told():
            if path.exists():
                self._open()

    def get(self, key: str) -> CachedAnswer | None:
        """The answer kept under `key`."""
        if key in self._waiting or not self._file:
            return self._waiting.get(key)
        with self._told():
            query = "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?"
            row = self._file.execute(query, (key,)).fetchone()
        return CachedAnswer(*row) if row else None

    def put(self, key: str, answer: CachedAnswer) -> None:
        """Keeps an answer; it is written with the next group."""
        self._waiting[key] = answer
        if len(self._waiting) >= GROUP:
            self.commit()

    def commit(self) -> None:
        """Writes what waits. The lock on the file is held for this moment only."""
        if self._waiting:
            rows = [(key, *answer) for key, answer in self._waiting.items()]
            with self._told(), self._file or self._open() as file:
                file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)
            self._waiting.clear()

    def close(self) -> None:
        """Writes what waits and closes the file."""
        self.commit()
        if self._file:
            self._file.close()

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The default journal, not WAL: that needs shared memory, which network file systems do not have.
        self._file = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        found = self._file.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        with self._file:
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, "
                "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL) WITHOUT ROWID"
            )
        return self._file

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the file of answers {self.path} cannot be used ({error}); give it back its place or its rights, or name "
                "another file: it is never deleted or overwritten, for its answers may have been paid for"
            ) from None
