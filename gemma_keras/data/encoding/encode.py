"""Chosen records to rows of token ids.

A conversation that is too long for a row keeps as many whole turns as fit, from its start; if not even the first answer
fits, that answer is cut. A document becomes as many rows as it takes.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gemma_keras.config.sections import DataConfig
from gemma_keras.data.cleaning.rules import TOO_LONG, TOO_SHORT, contents
from gemma_keras.data.records import SIDES, PreferenceRecord, Record, TextRecord
from gemma_keras.text.templates import CLOSING, CONTENT, PROMPT, Encoding, Message, Template
from gemma_keras.text.tokenizer import Tokenizer

EVERY_AUGMENTATION = 255

NO_ANSWER = "no_answer_within_sequence_length"
PROMPT_TOO_LONG = "prompt_too_long"


@dataclass(slots=True)
class EncodedRow:
    """One row of a prepared dataset: tokens i32[n], kinds u8[n] (see `text.templates`), and what of its record it is.

    Attributes:
        augmentation: of a record whose wording is drawn anew, the augmentation that it belongs to.
        side: of a pair, index into `records.SIDES`.
        piece: of a document that makes several rows, which of them it is, from 0.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    augmentation: int = EVERY_AUGMENTATION
    side: int | None = None
    piece: int | None = None


@dataclass(slots=True)
class Encoded:
    """What one record became: rows, or the rule that removed it."""

    rows: list[EncodedRow] = dataclasses.field(default_factory=list)
    removed: str = ""
    truncated: bool = False
    turns_cut: bool = False


def encode_records(
    records: list[Record],
    conversations: list[list[list[Message]]],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
) -> list[Encoded]:
    """Encodes records, all in a few calls of SentencePiece.

    Args:
        conversations: of each chat record one for each augmentation of its wording; of a pair the chosen and the rejected one; of
            a document none.
        config: has the limits in tokens, of rows, prompts and contents.
    """
    outside = _outside(records, tokenizer, config)
    texts = [record.text for record in records if isinstance(record, TextRecord)]
    documents = iter(tokenizer.encode_content_arrays(texts))
    chats = iter(template.encode_batch(tokenizer, [turns for several in conversations for turns in several]))
    results = []
    for record, several, rule in zip(records, conversations, outside, strict=True):
        if isinstance(record, TextRecord):
            encoded = _document(next(documents), tokenizer, config)
        else:
            encode = _pair if isinstance(record, PreferenceRecord) else _conversation
            encoded = encode([next(chats) for _ in several], config)
        results.append(Encoded(removed=rule or encoded.removed) if rule or encoded.removed else encoded)
    return results


def _outside(records: list[Record], tokenizer: Tokenizer, config: DataConfig) -> list[str]:
    """For each record the rule by which its content, without system prompt and template, is too short or too long."""
    cleaning = config.cleaning
    if not cleaning.min_tokens and not cleaning.max_tokens:
        return [""] * len(records)
    texts = [contents(record) for record in records]
    ids = iter(tokenizer.encode_content_arrays([text for parts in texts for text in parts]))
    lengths = [sum(len(next(ids)) for _ in parts) for parts in texts]
    longest = cleaning.max_tokens or max(lengths, default=0)
    return [TOO_SHORT if length < cleaning.min_tokens else TOO_LONG if length > longest else "" for length in lengths]


def _conversation(encodings: list[Encoding], config: DataConfig) -> Encoded:
    encoded = Encoded()
    for augmentation, encoding in enumerate(encodings):
        length = _cut(encoding, config.sequence_length, encoded)
        if length < len(encoding.ids) and not encoded.removed and CONTENT not in encoding.kinds[:length]:
            encoded.removed = NO_ANSWER
        augmentation = augmentation if len(encodings) > 1 else EVERY_AUGMENTATION
        encoded.rows.append(EncodedRow(encoding.ids[:length], encoding.kinds[:length], augmentation=augmentation))
    return encoded


def _cut(encoding: Encoding, sequence_length: int, encoded: Encoded) -> int:
    """How many tokens of a conversation are kept; notes in `encoded` what was lost."""
    if len(encoding.ids) <= sequence_length:
        return len(encoding.ids)
    fitting = [end for end in encoding.ends if end <= sequence_length]
    encoded.turns_cut = encoded.turns_cut or bool(fitting)
    encoded.truncated = encoded.truncated or not fitting
    return fitting[-1] if fitting else sequence_length


def _pair(encodings: list[Encoding], config: DataConfig) -> Encoded:
    encoded = Encoded()
    assert len(encodings) == len(SIDES)
    for side, encoding in enumerate(encodings):
        length = min(len(encoding.ids), config.sequence_length)
        # The prompt holds earlier answers of the model, which are content too: the answer starts after the last of them.
        start = encoding.ends[-2] if len(encoding.ends) > 1 else 0
        prompt = start + int(np.argmax(encoding.kinds[start:] >= CLOSING))
        if config.max_prompt_tokens and prompt > config.max_prompt_tokens:
            encoded.removed = PROMPT_TOO_LONG
        elif CONTENT not in encoding.kinds[prompt:length]:
            encoded.removed = encoded.removed or NO_ANSWER
        encoded.truncated = encoded.truncated or length < len(encoding.ids)
        kinds = encoding.kinds[:length].copy()
        kinds[:prompt] = PROMPT
        encoded.rows.append(EncodedRow(encoding.ids[:length], kinds, side=side))
    return encoded


def _document(ids: np.ndarray, tokenizer: Tokenizer, config: DataConfig) -> Encoded:
    """A document in pieces that each start with bos; eos closes the last, so that a model learns where texts end."""
    ids = np.append(ids, tokenizer.eos_id)
    kinds = np.full(len(ids), CONTENT, np.uint8)
    kinds[-1] = CLOSING
    size = config.sequence_length - 1
    starts = range(0, len(ids), size)
    encoded = Encoded()
    for number, start in enumerate(starts):
        tokens = np.insert(ids[start : start + size], 0, tokenizer.bos_id)
        piece_kinds = np.insert(kinds[start : start + size], 0, PROMPT)
        encoded.rows.append(EncodedRow(tokens, piece_kinds, piece=number if len(starts) > 1 else None))
    return encoded
