"""Files to rows. Every row of a file comes out once: as a dictionary, or as the reason why it cannot be read.

Files are read with the `datasets` library. Where it gives up on a file, the file is read again row by row, so that one
broken row does not take the sound ones with it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from gemma_keras.config.errors import UserError

# Reading a local file is no business of a server's: without this, every file costs a request to count downloads.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet", ".txt")

Row = dict[str, Any]
ReadRow = tuple[int, Row | None, str]
"""Number of the row in its file, from 1; the row, or None; the reason why it is None."""


def read_file(path: Path, whole_text: bool = False) -> Iterator[ReadRow]:
    """The rows of one file, told apart by its suffix, JSON by its content too (an array, lines, or `{"data": [...]}`).

    Args:
        path: an existing file.
        whole_text: a `.txt` file is one row `{"text": ...}`, not one a line.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _with_fallback(path, lambda: _datasets_table(path, suffix), lambda: _plain_table(path, suffix))
    elif suffix == ".parquet":
        yield from _with_fallback(path, lambda: _datasets_rows("parquet", path), lambda: iter(()))
    elif suffix == ".txt":
        by = "document" if whole_text else "line"
        yield from _with_fallback(
            path, lambda: _datasets_rows("text", path, sample_by=by), lambda: _plain_text(path, whole_text)
        )
    else:
        yield from _with_fallback(path, lambda: _datasets_json(path), lambda: _plain_json(path))


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


def _with_fallback(
    path: Path, first: Callable[[], Iterable[Row]], second: Callable[[], Iterable[ReadRow]]
) -> Iterator[ReadRow]:
    """Rows of `first()`; should it fail anywhere, those of `second()` instead; a file without rows is reported."""
    try:
        # A failure may come late, when half of the rows are already counted: so all are read before any is given.
        rows: list[ReadRow] = [(number, row, "") for number, row in enumerate(first(), start=1)]
    except Exception as error:
        rows = list(second())
        reason = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    else:
        reason = "no rows"
    if rows:
        yield from rows
    else:
        yield 0, None, "no rows" if not path.stat().st_size else reason


def _datasets_rows(builder: str, path: Path, **options: Any) -> Iterator[Row]:
    yield from datasets.load_dataset(builder, data_files=[str(path)], split="train", streaming=True, **options)


def _datasets_table(path: Path, suffix: str) -> Iterator[Row]:
    separator = "\t" if suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator))
    # Every column is text: numbers would come back in another spelling, empty fields as NaN.
    features = datasets.Features({name: datasets.Value("string") for name in names})
    yield from _datasets_rows(
        "csv", path, sep=separator, features=features, keep_default_na=False, encoding="utf-8-sig"
    )


def _datasets_json(path: Path) -> Iterator[Row]:
    form = json_form(path)
    if form == "object":
        raise ValueError("one JSON object")
    options = {"field": "data"} if form == "data" else {}
    for row in _datasets_rows("json", path, **options):
        if not isinstance(row, dict) or any(
            not isinstance(v, str | list | dict | int | float | None) for v in row.values()
        ):
            # Arrow takes strings that look like times for times.
            raise ValueError("values change their type")
        yield row


def json_form(path: Path) -> str:
    """How a JSON file is laid out, by its content: "array", "lines", "data" (an object with a list `data`) or "object"."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"{"):
            return "array" if start.startswith(b"[") else "lines"
        file.seek(0)
        first_line = file.readline().removeprefix(b"\xef\xbb\xbf")
        value = _loads(first_line)
        if value is None:
            file.seek(0)
            value = _loads(file.read().removeprefix(b"\xef\xbb\xbf"))
            if value is None:
                return "lines"
        elif file.read().strip():
            return "lines"
    return "data" if isinstance(value, dict) and isinstance(value.get("data"), list) else "object"


def _loads(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain_json(path: Path) -> Iterator[ReadRow]:
    form = json_form(path)
    if form in ("data", "object"):
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
        rows = value["data"] if form == "data" else [value]
        yield from (_checked(number, row) for number, row in enumerate(rows, start=1))
    elif form == "array":
        yield from _array_elements(path.read_bytes().decode("utf-8-sig", errors="replace"))
    else:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_line(number, line)


def _json_line(number: int, line: bytes) -> ReadRow:
    try:
        return _checked(number, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return number, None, "not UTF-8"
    except (ValueError, RecursionError) as error:
        return number, None, f"no JSON: {error}"


def _array_elements(text: str) -> Iterator[ReadRow]:
    """Elements of a JSON array that may be broken; after a broken one, reading goes on at the next line that opens one."""
    decoder = json.JSONDecoder()
    opening = re.compile(r"\n\s*(?=\{)")
    position = text.index("[") + 1
    number = 0
    while True:
        while text[position : position + 1] in ("\n", " ", ",", "\r", "\t"):
            position += 1
        if text.startswith("]", position) or (position == len(text) and number):
            return
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
            yield _checked(number, value)
        except (ValueError, RecursionError) as error:
            yield number, None, f"no JSON: {str(error).split(':')[0]}"
            following = opening.search(text, position)
            if following is None:
                return
            position = following.end()


def _checked(number: int, row: Any) -> ReadRow:
    return (number, row, "") if isinstance(row, dict) else (number, None, f"{type(row).__name__}, not an object")


def _plain_table(path: Path, suffix: str) -> Iterator[ReadRow]:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    names = next(reader, [])
    number = 0
    while True:
        number += 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, None, f"no CSV: {error}"
            continue
        if len(values) != len(names):
            yield number, None, f"{len(values)} fields, but {len(names)} columns"
        elif any("\ufffd" in value for value in values):
            yield number, None, "not UTF-8"
        else:
            yield number, dict(zip(names, values, strict=True)), ""


def _plain_text(path: Path, whole: bool) -> Iterator[ReadRow]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate([data] if whole else data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, {"text": line.decode()}, ""
        except UnicodeDecodeError:
            yield number, None, "not UTF-8"
