"""Questions from a file or another text: one a line, JSON of several layouts, or a table."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gemma_keras.config.errors import UserError
from gemma_keras.data.reading.readers import read_file, suffix_of
from gemma_keras.data.reading.streams import ByteStream
from gemma_keras.solvers.question_rows import FORM, QUESTION, Asked, Given, is_question, to_questions
from gemma_keras.solvers.trace import Question

_JSON = (".json", ".jsonl", ".ndjson")
_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
_JSON_START = re.compile(r'\{\s*["}]|\[\s*[{"\]]')
_DECODER = json.JSONDecoder(strict=False)


class _File(ByteStream):
    """As corpora are read: compressed or not, UTF-8, UTF-16 or GB18030; a pipe such as `<(command)` serves as well."""

    def open(self) -> BinaryIO:
        return self.path.open("rb")


def read_questions(path: str) -> list[Asked]:
    """The questions of a file.

    Raises:
        UserError: the file cannot be read, holds no question, or has a row that is none.
    """
    origin = f"solver.input={path}"
    suffix = suffix_of(Path(path))
    if suffix == ".parquet" and Path(path).is_file():
        return to_questions(list(_read_parquet(path, origin)), origin)
    stream = _File(Path(path))
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
    """The entries of a list, of the only list of an object, or of an object of objects; or one value a line."""
    try:
        value = _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        rows = _read_json_lines(text, origin)
        if len(rows) < 2:
            raise UserError(f"{origin} is no JSON ({error}); {FORM}.") from error
        return rows
    entries = value
    if isinstance(value, dict):
        entries = [value] if is_question(value) else _find_list(value)
    if not isinstance(entries, list):
        raise UserError(f"{origin} is a {type(value).__name__}; {FORM}.")
    if entries == [value]:
        return [(f"line 1 of {origin}", value)]
    return [(f"entry {number} of {origin}", entry) for number, entry in enumerate(entries, 1)]


def _find_list(value: dict[str, Any]) -> list[Any]:
    """What an object that is no question itself holds of them: its only list, or its objects; else the object."""
    lists = [entry for entry in value.values() if isinstance(entry, list)]
    if len(lists) == 1:
        return lists[0]
    objects = list(value.values())
    return objects if objects and all(isinstance(entry, dict) for entry in objects) else [value]


def _read_json_lines(text: str, origin: str) -> list[Given]:
    """One value a line; none where the first line is no JSON."""
    rows: list[Given] = []
    for number, line in enumerate(text.split("\n"), 1):
        line, where = line.strip("\ufeff \t\r"), f"line {number} of {origin}"
        if not line:
            continue
        try:
            rows.append((where, _DECODER.decode(line)))
        except (ValueError, RecursionError) as error:
            if not rows:
                break
            raise UserError(f"{where} is no JSON ({error}); {FORM}.") from error
    return rows


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
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    names: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not names:
                names = values
                continue
            where = f"line {reader.line_num} of {origin}"
            if len(values) < len(names) or any(values[len(names) :]):
                raise UserError(f"{where} has {len(values)} fields for {len(names)} columns; {FORM}.")
            yield where, dict(zip(names, values))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {origin} is no row of a table ({error}); {FORM}.") from error


def _read_parquet(path: str, origin: str) -> Iterator[Given]:
    for number, row, reason in read_file(Path(path)):
        if row is None:
            raise UserError(f"{origin} cannot be read ({reason}); give a file of questions.")
        yield f"row {number} of {origin}", row
