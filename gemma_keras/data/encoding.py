"""Chosen records to rows of token ids."""

from dataclasses import dataclass

import numpy as np

from gemma_keras.data.records import Record, TextRecord
from gemma_keras.text.templates import CLOSING, CONTENT, PROMPT, Message, Template
from gemma_keras.text.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class EncodedRow:
    """One row of a prepared dataset: tokens i32[n], kinds u8[n] (see `text.templates`)."""

    tokens: np.ndarray
    kinds: np.ndarray
    type: str
    source: str
    id: str


@dataclass(slots=True, kw_only=True)
class Encoded:
    """What one record became: no rows if no token of a model's turn fits into the sequence length."""

    rows: list[EncodedRow]
    truncated: bool = False


def encode_records(
    items: list[tuple[Record, list[Message]]], tokenizer: Tokenizer, template: Template, sequence_length: int
) -> list[Encoded]:
    """Encodes records, all in a few calls of SentencePiece.

    Args:
        items: each record with the messages to render (those of a `ChatRecord` with its system prompt; else empty).
    """
    documents = iter(tokenizer.encode_content_batch([r.text for r, _ in items if isinstance(r, TextRecord)]))
    chats = iter(template.encode_batch(tokenizer, [turns for r, turns in items if not isinstance(r, TextRecord)]))
    return [
        _document(record, next(documents), tokenizer, sequence_length)
        if isinstance(record, TextRecord)
        else _conversation(record, *next(chats), sequence_length)
        for record, _ in items
    ]


def _conversation(record: Record, ids: list[int], kinds: list[int], sequence_length: int) -> Encoded:
    truncated = len(ids) > sequence_length
    ids, kinds = ids[:sequence_length], kinds[:sequence_length]
    if CONTENT not in kinds:
        return Encoded(rows=[], truncated=truncated)
    return Encoded(rows=[_row(record, record.id, ids, kinds)], truncated=truncated)


def _document(record: Record, ids: list[int], tokenizer: Tokenizer, sequence_length: int) -> Encoded:
    """A document in pieces that each start with bos; eos closes the last, so that a model learns where texts end."""
    ids = [*ids, tokenizer.eos_id]
    kinds = [CONTENT] * (len(ids) - 1) + [CLOSING]
    size = sequence_length - 1
    starts = range(0, len(ids), size)
    rows = [
        _row(
            record,
            f"{record.id}@{number}" if len(starts) > 1 else record.id,
            [tokenizer.bos_id, *ids[start : start + size]],
            [PROMPT, *kinds[start : start + size]],
        )
        for number, start in enumerate(starts)
    ]
    return Encoded(rows=rows)


def _row(record: Record, row_id: str, ids: list[int], kinds: list[int]) -> EncodedRow:
    return EncodedRow(
        tokens=np.array(ids, np.int32),
        kinds=np.array(kinds, np.uint8),
        type=record.type,
        source=record.source,
        id=row_id,
    )
