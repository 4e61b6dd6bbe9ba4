"""Questions from a file or another text: one a line, JSON of several layouts, or a table."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gemma_keras.config.errors import UserError
from gemma_keras.data.reading.elements import json_rows
from gemma_keras.data.reading.readers import ReadRow, read_file, suffix_of
from gemma_keras.data.reading.streams import ByteStream
from gemma_keras.solvers.question_rows import FORM, QUESTION, Asked, Given, is_question, to_questions
from gemma_keras.solvers.trace import Question

_JSON = (".json", ".jsonl", ".ndjson")
_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
_JSON_START = re.compile(r'\{\s*["}]|\[\s*[{"\]]')
_DECODER = json.JSONDecoder(strict=False)


class _Input(ByteStream):
    """As corpora are read: compressed or not, UTF-8, UTF-16 or GB18030; a pipe such as `<(command)` serves as well."""

    def open(self) -> BinaryIO:
        return self.path.open("rb")


class _TextStream(ByteStream):
    """A text that is at hand."""

    def __init__(self, text: str):
        super().__init__(Path())
        self._content = text.encode()

    def open(self) -> BinaryIO:
        return io.BytesIO(self._content)


def read_questions(path: str) -> list[Asked]:
    """The questions of a file.

    Raises:
        UserError: the file cannot be read, holds no question, or has a row that is none.
    """
    origin = f"solver.input={path}"
    suffix = suffix_of(Path(path))
    if suffix == ".parquet" and Path(path).is_file():
        return to_questions(_checked(read_file(Path(path)), origin), origin)
    stream = _Input(Path(path))
    content = b"".join(stream)
    if stream.damage:
        raise UserError(f"{origin} {stream.damage}; give a file of questions.")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is no UTF-8 text ({error}); save it as UTF-8: {FORM}.") from error
    return parse_questions(text, origin, suffix)


def parse_questions(text: str, origin: str, suffix: str = "") -> list[Asked]:
    """The questions of a text.

    JSON and tables are told by the suffix or by how the text begins: a bracket and what may follow it in JSON; a line of
    several columns one of which is called question. Any other text is one question a line. Blank lines are passed over.

    Args:
        origin: what errors call the text.
        suffix: of its file, such as ".csv"; empty: not known.

    Raises:
        UserError: as `read_questions`.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{origin} holds no question; write one a line, or {FORM}.")
    if suffix in _JSON or (suffix not in _DELIMITERS and _is_json(text)):
        return to_questions(_read_json(text, origin), origin)
    delimiter = _find_delimiter(text, suffix)
    if delimiter:
        return to_questions(list(_read_table(text, delimiter, origin)), origin)
    if suffix in _DELIMITERS:
        header = text.strip().splitlines()[0][:100]
        raise UserError(f"{origin} has no column called question, but begins with {header!r}; {FORM}.")
    return [Asked(Question(line.strip())) for line in text.split("\n") if line.strip()]


def _is_json(text: str) -> bool:
    """Whether a text begins as JSON does, well-formed or not; a sentence that begins with a list or a set does not."""
    start = text.lstrip()
    if not _JSON_START.match(start):
        return False
    try:
        value, end = _DECODER.raw_decode(start)
    except (ValueError, RecursionError):
        return True
    first = value[0] if isinstance(value, list) and value else value
    return not start[end:].partition("\n")[0].strip() or (isinstance(first, dict) and is_question(first))


def _read_json(text: str, origin: str) -> list[Given]:
    """The rows of the layouts of corpora; of one object, those of its only list, or of its objects."""
    rows = _checked(json_rows(_TextStream(text)), origin)
    alone = rows[0][1] if len(rows) == 1 else None
    if isinstance(alone, dict) and not is_question(alone) and (entries := _find_list(alone)):
        return [(f"entry {number} of {origin}", entry) for number, entry in enumerate(entries, 1)]
    return rows


def _checked(read: Iterable[ReadRow], origin: str) -> list[Given]:
    """Rows that could be read, those of a text alone as this."""
    rows: list[Given] = []
    for number, row, reason in read:
        where = f"row {number} of {origin}" if number else origin
        if row is None:
            raise UserError(f"{where} cannot be read ({reason}); {FORM}.")
        is_text = row.keys() == {"text"} and isinstance(row["text"], str)
        rows.append((where, row["text"] if is_text else row))
    return rows


def _find_list(value: dict[str, Any]) -> list[Any]:
    """What an object that is no question itself holds of them: its only list, or its objects; empty: nothing."""
    lists = [entry for entry in value.values() if isinstance(entry, list)]
    if len(lists) == 1:
        return lists[0]
    objects = list(value.values())
    return objects if all(isinstance(entry, dict) for entry in objects) else []


def _find_delimiter(text: str, suffix: str) -> str:
    """What separates the columns of a table, which one of them has to be called question; empty: it is none."""
    header = text.lstrip("\r\n").splitlines()[0]
    for delimiter in _DELIMITERS.get(suffix, ("\t", ",", ";")):
        columns = [column.strip(' "').lower() for column in header.split(delimiter)]
        if set(columns) & set(QUESTION) and (len(columns) > 1 or suffix):
            return delimiter
    return ""


def _read_table(text: str, delimiter: str, origin: str) -> Iterator[Given]:
    """Rows by the names of their columns; in a table with tabs quotes are characters like others."""
    reader = csv.DictReader(
        io.StringIO(text.lstrip("\r\n"), newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        for row in reader:
            where, beyond = f"line {reader.line_num} of {origin}", row.pop(None, [])
            values = [value for value in row.values() if value is not None]
            if not any(value.strip() for value in (*values, *beyond)):
                continue
            if any(beyond) or len(values) < len(row):
                raise UserError(f"{where} has {len(values) + len(beyond)} fields for {len(row)} columns; {FORM}.")
            yield where, row
    except csv.Error as error:
        raise UserError(f"line {reader.reader.line_num} of {origin} is no row of a table ({error}); {FORM}.") from error
