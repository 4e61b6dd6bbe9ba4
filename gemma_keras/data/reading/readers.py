"""Files to rows. Every row of a file comes out once: as a dictionary, or as the reason why it cannot be read.

Files are read as streams, in constant memory; nothing in a file makes a reader raise or stop early.
"""

import csv
import itertools
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from gemma_keras.config.errors import UserError
from gemma_keras.data.reading.elements import NOT_UTF8, TOO_LONG, ReadRow, Row, json_rows, line_rows
from gemma_keras.data.reading.streams import COMPRESSIONS, MAX_ROW_BYTES, ByteStream

# Reading a local folder is no business of a server's: without this, each costs a request to count downloads.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
# The limit belongs to the module, not to a reader; its default is shorter than many a document.
csv.field_size_limit(MAX_ROW_BYTES)

_POINTERS = {
    rb"version https://(git-lfs|hawser)\.github\.com/spec/": "a Git LFS pointer, not the data (run git lfs pull where it was "
    "cloned)",
    rb"/annex/objects/": "a git-annex pointer, not the data (run git annex get where it was cloned)",
}
"""What a file begins with that stands for another one, and what to do about it. Such files are short."""
_LONGEST_POINTER = 1024

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
_PARQUET_ROWS = 256
_MOST_HELD = 4 << 20
"""Memory of the lines of one table row, in bytes: where there are more, a quote has not been closed."""


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression: ".json" for `a.JSON` and `a.json.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def read_file(
    path: Path, *, text_unit: str = "line", columns: tuple[str, ...] = (), plain: bool = False
) -> Iterator[ReadRow]:
    """The rows of one file by its suffix, which `.gz` or `.zst` may follow.

    - `.json`, `.jsonl`, `.ndjson` and any other: JSON in whichever layout the content has, see `elements.json_rows`;
      numbers are those of lines or of elements;
    - `.csv`: quoted, `.tsv`: never quoted; a row holds its fields as strings; numbers leave out the header;
    - `.parquet`;
    - `.txt`: a row `{"text": ...}` for each line that is not blank, each paragraph, or the file.

    For encodings see `streams.ByteStream`. A file without rows, one that cannot be opened, or a pointer that Git LFS left in
    its place, is row 0 with the reason; in one that is cut or corrupt, the last row gives the reason, and the rows before
    the damage come out.

    Args:
        text_unit: what of a text file is a row: "line", "paragraph" (lines up to a blank one) or "file".
        columns: names of the columns of a table that has no header.
        plain: the file is text whatever its suffix.
    """
    stream = ByteStream(path)
    if pointer := _pointer(stream):
        yield 0, None, pointer
        return
    suffix = ".txt" if plain else suffix_of(path)
    if suffix in (".csv", ".tsv"):
        rows = _table_rows(stream, suffix, columns)
    elif suffix == ".parquet":
        rows = _parquet_rows(stream)
    elif suffix == ".txt":
        rows = _TEXT_UNITS[text_unit](stream)
    else:
        rows = json_rows(stream)
    number = 0
    for read in rows:
        number = read[0]
        yield read
    if stream.damage:
        yield number + 1 if number else 0, None, stream.damage
    elif not number:
        yield 0, None, "no rows"


def _pointer(stream: ByteStream) -> str:
    """What the file is if it only stands for another one, else empty."""
    try:
        with stream.open() as file:
            head = file.read(_LONGEST_POINTER + 1)
    except OSError:
        return ""  # which the reader says by itself
    if len(head) > _LONGEST_POINTER:
        return ""
    return next((what for start, what in _POINTERS.items() if re.match(start, head)), "")


def read_hub(name: str) -> Iterator[ReadRow]:
    """The rows of the training split of a dataset on the Hugging Face hub, named `owner/name` or `owner/name:subset`.

    Raises:
        UserError: it cannot be had.
    """
    identifier, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(identifier, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield number, row, ""
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"dataset {name!r} cannot be read from the hub ({type(error).__name__}: {reason}); "
            "check its name and the network, or download it and set the corpus's path"
        ) from error


def _text_row(text: bytes) -> tuple[Row | None, str]:
    try:
        return {"text": text.decode()}, ""
    except UnicodeDecodeError:
        return None, NOT_UTF8


def _text_lines(stream: ByteStream) -> Iterator[ReadRow]:
    return line_rows(stream, lambda line: _text_row(line.rstrip(b"\r\n")))


def _whole_text(stream: ByteStream) -> Iterator[ReadRow]:
    text = b""
    for chunk in stream:
        text += chunk
        if len(text) > MAX_ROW_BYTES:
            yield 1, None, TOO_LONG
            return
    if text.strip() and not stream.damage:
        yield 1, *_text_row(text)


def _paragraphs(stream: ByteStream) -> Iterator[ReadRow]:
    paragraph, first, size = [], 0, 0
    for number, line in enumerate(itertools.chain(stream.lines(), (b"\n",)), start=1):
        if line is not None and not line.isspace():
            first = first or number
            size += len(line)
            if size <= MAX_ROW_BYTES:
                paragraph.append(line)
            continue
        if first:
            yield first, *(_text_row(b"".join(paragraph)) if size <= MAX_ROW_BYTES else (None, TOO_LONG))
        if line is None:
            yield number, None, TOO_LONG
        paragraph, first, size = [], 0, 0


_TEXT_UNITS = {"line": _text_lines, "paragraph": _paragraphs, "file": _whole_text}


class _TableLines:
    """Lines for `csv.reader`, which asks for as many as a row takes; after a failure, all but the first come again.

    An unclosed quote makes one row of all lines up to the next quote. Of the lines that come again, each but the last has
    to be a row by itself: were they free to run on as well, every line could read the rest of the file once more.
    """

    def __init__(self, lines: Iterator[bytes | None]) -> None:
        self._lines = lines
        self._again: deque[bytes | None] = deque()
        self._taken: list[bytes | None] = []
        self._size = 0
        self._alone = False
        self.sound = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._taken and (self._alone or self._size > _MOST_HELD):
            raise csv.Error("a quoted field is not closed")
        line = self._next()
        while not self._taken and line is not None and line.isspace():
            line = self._next()
        self._alone = bool(self._again)
        self._taken.append(line)
        if line is None:
            raise csv.Error(TOO_LONG)
        self._size += sys.getsizeof(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.sound = False
            return line.decode(errors="replace")

    def _next(self) -> bytes | None:
        return self._again.popleft() if self._again else next(self._lines)

    def begin_row(self) -> None:
        self._taken, self._size, self.sound = [], 0, True

    def give_back(self) -> None:
        self._again.extendleft(reversed(self._taken[1:]))


def _table_rows(stream: ByteStream, suffix: str, columns: tuple[str, ...]) -> Iterator[ReadRow]:
    lines = _TableLines(stream.lines())
    quoted = suffix == ".csv"
    reader = csv.reader(
        lines,
        delimiter="," if quoted else "\t",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names, number = list(columns), 0
    while True:
        lines.begin_row()
        values, reason = [], ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back()
            reason = f"no CSV: {error}"
        if not reason and not lines.sound:
            reason = NOT_UTF8
        if not names:
            if reason:
                stream.damage = f"the header is no row: {reason}"
                return
            names = values
            continue
        number += 1
        if not reason and len(values) != len(names):
            reason = f"{len(values)} fields, but {len(names)} columns"
        yield number, None if reason else dict(zip(names, values)), reason


def _parquet_rows(stream: ByteStream) -> Iterator[ReadRow]:
    number = 0
    try:
        with stream.open() as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_PARQUET_ROWS):
                for row, reason in _batch_rows(batch):
                    number += 1
                    yield number, row, reason
    except (
        Exception
    ) as error:  # pyarrow raises many kinds of errors on damaged files, OSError and ValueError among them
        stream.damage = f"cannot be read: {type(error).__name__}: {str(error).split(chr(10))[0]}"


def _batch_rows(batch: Any) -> Iterator[tuple[Row | None, str]]:
    try:
        yield from ((row, "") for row in batch.to_pylist())
    except ValueError as error:
        if len(batch) == 1:
            yield None, f"cannot be read: {error}"
            return
        # One value, such as a string that is not UTF-8, spoils the conversion of the batch.
        for index in range(len(batch)):
            yield from _batch_rows(batch.slice(index, 1))
