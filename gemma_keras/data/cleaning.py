"""Rules that remove rows. Each rule is a name in the report."""

import hashlib
from collections.abc import Iterable

from gemma_keras.data.records import Record, TextRecord

EMPTY = "empty"
DUPLICATE = "duplicate"
IN_VALIDATION = "in_validation"


def is_empty(record: Record) -> bool:
    """Whether a user's or the model's turn, or the document, holds nothing but blanks."""
    if isinstance(record, TextRecord):
        return not record.text.strip()
    return any(not turn["content"].strip() for turn in record.messages if turn["role"] != "system")


def exact_key(record: Record) -> bytes:
    """Equal for records with the same content but for blanks at its ends; system turns do not count."""
    return _digest(text.strip() for text in _contents(record))


def content_key(record: Record) -> bytes:
    """Equal for records with the same content but for blanks anywhere: what counts as seen in the validation rows."""
    return _digest("".join(text.split()) for text in _contents(record))


def _contents(record: Record) -> Iterable[str]:
    if isinstance(record, TextRecord):
        return (record.text,)
    return (turn["content"] for turn in record.messages if turn["role"] != "system")


def _digest(texts: Iterable[str]) -> bytes:
    # The separator cannot occur within UTF-8, so that ("a", "b") and ("ab",) differ.
    return hashlib.blake2b(b"\xff".join(text.encode() for text in texts), digest_size=16).digest()
