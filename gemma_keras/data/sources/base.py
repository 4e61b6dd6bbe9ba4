"""What an entry of the table of sources is, and what the functions that read rows share."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from gemma_keras.data.cleaning.rules import contents
from gemma_keras.data.reading.elements import Row
from gemma_keras.data.records import BadRow, ChatRecord, Record
from gemma_keras.text.templates import Message

RESEARCH = "research use; see the publisher"

FILE = "__file__"
"""Key of a raw row that `Corpus.names_file` adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus, and how its rows are read.

    Attributes:
        name: what configurations call it.
        read: a raw row to its records. Raises BadRow (quarantined) or SkippedRow (removed under the rule that it names).
        type: kind of task of its records, where they are all of one.
        places: globs under a data root, of which the first that matches anything is read; the entry's own name if none is given.
        hub_id: where it is published, as `owner/name` or `owner/name:subset`.
        licence: as its publisher states it.
        schema: the keys of a raw row, for people to read.
        text_unit: what of its text files is a row: "line", "paragraph" (lines up to a blank one) or "file".
        columns: names of the columns of its csv and tsv files, where these have no header.
        suffixes: of files of its own besides those of `readers.SUFFIXES`; such files are text.
        names_file: rows say which file they come from, as reports show it, under the key `FILE`.
        kind: the kind of task of a raw row, of a corpus that holds several.
        kinds: which of them are taken if the configuration says nothing; empty: all.
        group: key of a raw row; consecutive rows with the same key are read together, and `read` takes a list of them.
        bodies: what of a record is the corpus's own, where wording of ours stands around it: what near duplicates are told
            by, and what must not occur in training rows.
    """

    name: str
    read: Callable[[Any], list[Record]]
    type: str = ""
    places: tuple[str, ...] = ()
    hub_id: str = ""
    licence: str = RESEARCH
    schema: str = ""
    text_unit: str = "line"
    columns: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    names_file: bool = False
    kind: Callable[[Row], str] | None = None
    kinds: tuple[str, ...] = ()
    group: Callable[[Row], str] | None = None
    bodies: Callable[[Record], list[str]] = contents


_MAY_BE_NUMBERS = frozenset(
    "output output_zh trans_output response RESPONSE answer Answer std_answer textbox_answer target 答 "
    "response_chosen response_rejected chosen rejected assistant human value content "
    "input input_zh trans_input query A B C D".split()
)
"""Keys of answers, of what requests are about, and of turns. A number as an instruction or a document is a mistake."""


def text(row: Row, *keys: str) -> str:
    """The text under the first of `keys` that the row has something under; BadRow if it has none, or no text there."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, int | float) and key not in _MAY_BE_NUMBERS and not is_missing(value):
            raise BadRow(f"{key} is {type(value).__name__}, not a string")
        if not is_missing(value):
            return as_text(value, key)
    raise BadRow(f"no {' or '.join(keys)}")


def column(key: str) -> Callable[[Row], str]:
    """The function that gives the text of a row under `key`: what a kind or a group is told by."""
    return lambda row: text(row, key)


def optional_text(row: Row, *keys: str) -> str:
    """As `text`, but empty if the row has none of the keys, or false there."""
    present = [key for key in keys if not is_missing(row.get(key)) and row[key] is not False]
    return text(row, *present) if present else ""


def is_missing(value: Any) -> bool:
    """Whether a row has nothing there: null, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, key: str) -> str:
    """A string as it stands; a number, true and false as JSON writes them; a list of text parts, a line each.

    Raises:
        BadRow: it is something else, or a part is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    if value and isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "\n".join(filter(None, (_part(part, key) for part in value)))
    raise BadRow(f"{key} is {type(value).__name__}, not a string")


def _part(part: Row, key: str) -> str:
    """The text of `{"type": "text", "text": ...}`, whose type may be missing or that of an API (input_text, output_text)."""
    kind, said = part.get("type"), part.get("text")
    if kind not in (None, "text", "input_text", "output_text"):
        raise BadRow(f"{key} has a part of type {str(kind)[:20]}, but only text is read")
    if not isinstance(said, str):
        raise BadRow(f"{key} has a part without text")
    return said


def parsed(value: Any) -> Any:
    """A list or object that a column holds as a JSON string; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def list_of(row: Row, key: str, kind: type) -> list[Any]:
    """The list under `key`, or the JSON of one, all of whose items are of `kind`; BadRow otherwise."""
    values = parsed(row.get(key))
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise BadRow(f"{key} is not a list of {kind.__name__}")
    return values


def after_request(record: Record) -> list[str]:
    """The contents of a record whose user's turn is a request of ours, a colon, and on the next line the corpus's text."""
    asked, *rest = contents(record)
    return [asked.partition("：\n")[2] or asked, *rest]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def model(content: str) -> Message:
    return {"role": "model", "content": content}


def answer(question: str, reply: str, type: str) -> list[Record]:
    """One question and its answer, as the one record of a row."""
    return [ChatRecord(messages=[user(question), model(reply)], type=type)]
