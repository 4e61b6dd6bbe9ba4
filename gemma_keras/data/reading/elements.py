"""JSON files of any layout to rows, as a stream: lines, arrays, and arrays within an object. A string is a row of text."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from gemma_keras.data.reading.streams import MAX_ROW_BYTES, ByteStream

Row = dict[str, Any]
ReadRow = tuple[int, Row | None, str]
"""Number of the row in its file, from 1 (0: the file as a whole); the row, or None; the reason why it is None."""

NOT_UTF8 = "not UTF-8"
TOO_LONG = f"longer than {MAX_ROW_BYTES >> 20} MiB"

_LENIENT = json.JSONDecoder(strict=False)
_QUOTE = ord('"')
_FIRST_LINE = re.compile(rb"\s*+([^\r\n]*+)\s*+")
# Nothing here can backtrack. A string never spans lines, so that an unclosed quote is noticed at the end of its line.
_STRING = rb'"[^"\\\r\n]*+(?:\\.[^"\\\r\n]*+)*+'
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb'")*+')
_TO_COMMA = re.compile(rb'(?:[^"{}\[\],]++|' + _STRING + rb'")*+')
_CUT_STRING = re.compile(_STRING + rb"\\?+\Z")
_KEY = rb'"\d+"\s*+:\s*+'
_SEPARATORS = re.compile(rb"(?:[\s,]++|" + _KEY + rb")*+")
_INDENT = re.compile(rb"(?:\A|[\r\n])([ \t]*+)(?:" + _KEY + rb")?+\Z")
_DATA_KEY = re.compile(rb'"data"\s*+:\s*+\Z')
_OBJECTS = re.compile(rb"\s*+(?:[{\]]|\Z)")
_NUMBERED_OBJECTS = re.compile(rb"\s*+\{\s*+" + _KEY + rb"\{")
# How much text shows the layout, and how much of it is kept where an opening line may have begun.
_HEAD = 1 << 16
_TAIL = 4096


def json_rows(stream: ByteStream) -> Iterator[ReadRow]:
    """The rows of a JSON file with their numbers; a row that is none has a reason instead. Told by the content:

    - lines, a value each: numbers are those of the lines; blank lines are no rows;
    - an array, an object with a list of objects under `data`, or an object of objects under numbers ("0", "1", ...):
      numbers are those of the elements, wherever the line breaks are;
    - one object over several lines, or several such after one another: a row each.

    After an element that is broken or too long, reading goes on at the next line that opens one.
    """
    head, kind = b"", b""
    for chunk in stream:
        head += chunk
        first = _match(_FIRST_LINE, head)
        kind = first[1][:1]
        ended = first.end(1) < len(head) or not kind
        if kind not in (b"", b"{") or (ended and len(head) >= _HEAD) or len(head) > MAX_ROW_BYTES:
            break
    layout = _layout(head) if kind in (b"{", b"[") else None
    if layout is not None:
        for number, element in enumerate(_Elements(stream, head, *layout), start=1):
            yield number, *element
        return
    stream.give_back(head)
    del head
    yield from line_rows(stream, _parsed)


def line_rows(stream: ByteStream, parsed: Callable[[bytes], tuple[Row | None, str]]) -> Iterator[ReadRow]:
    """What the lines that are not blank are as rows, with the numbers of the lines."""
    for number, line in enumerate(stream.lines(), start=1):
        if line is None:
            yield number, None, TOO_LONG
        elif not line.isspace():
            yield number, *parsed(line)


def _match(pattern: re.Pattern[bytes], data: bytes, *span: int) -> re.Match[bytes]:
    """The match of one of the patterns that match anywhere, if only nothing."""
    found = pattern.match(data, *span)
    assert found is not None
    return found


def _layout(head: bytes) -> tuple[int, bytes] | None:
    """Where elements start and what ends them (empty: the end of the file); None for lines.

    Args:
        head: the start of the file with the whole first line, if that is no longer than a row may be.
    """
    first = _match(_FIRST_LINE, head)
    start, line = first.start(1), first[1].rstrip()
    if line.startswith(b"["):
        return start + 1, b""
    if first.end() < len(head) and _parsed(line)[0] is not None:
        return None
    if data := _data_list(head, start):
        return data, b"]"
    if _NUMBERED_OBJECTS.match(head):
        return start + 1, b"}"
    return (start, b"") if line.endswith((b"{", b"[", b",", b":")) else None


def _data_list(head: bytes, position: int) -> int:
    """Position after the bracket that opens the list `data` of the object at `position`; 0 if there is none."""
    depth = 0
    while True:
        position = _match(_TO_BRACKET, head, position).end() + 1
        bracket = head[position - 1 : position]
        if depth == 1 and bracket == b"[" and _DATA_KEY.search(head, max(0, position - 64), position - 1):
            return position if _OBJECTS.match(head, position) else 0
        depth += 1 if bracket in (b"{", b"[") else -1
        if depth <= 0 or bracket in (b"", b'"'):
            return 0


def _parsed(text: bytes) -> tuple[Row | None, str]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        # More is let through here: control characters, escapes of lone surrogates, NaN, a byte order mark within the file.
        try:
            value = _LENIENT.decode(text.decode().strip("\ufeff \t\r\n"))
        except UnicodeDecodeError:
            return None, NOT_UTF8
        except RecursionError:
            return None, "nested too deeply"
        except ValueError as error:
            return None, f"no JSON: {error}"
    if isinstance(value, str):
        return {"text": value}, ""
    return (value, "") if isinstance(value, dict) else (None, f"{type(value).__name__}, not an object")


class _Elements:
    """Splits JSON text into elements by counting brackets, and parses them: an iterator of (row or None, reason).

    The end of a broken element is not where its brackets are balanced again, and that place may be far away. The text up
    to where that was noticed is read once more, now with every line that opens an element taken for the end of the one
    before; beyond it brackets count again. So no text is read more than a few times, whatever is in it.
    """

    def __init__(self, stream: ByteStream, head: bytes, start: int, end: bytes) -> None:
        self._stream = stream
        self._data = head
        self._start = start
        self._end_mark = end
        self._suspect = self._next_opening = 0
        self._number = 0
        self._opening = _INDENT  # until the first element shows how lines open one

    def __iter__(self) -> Iterator[tuple[Row | None, str]]:
        while self._to_element():
            end, whole = self._scan(self._start, 0, self._limit())
            if end < 0:
                if self._more():
                    continue
                end = len(self._data)
                if self._stream.damage and not self._opening.search(self._data, self._start + 1):
                    return  # what is wrong with this element is the damage
            row: Row | None = None
            if end - self._start > MAX_ROW_BYTES:
                reason = TOO_LONG
            elif whole:
                row, reason = _parsed(self._data[self._start : end])
            else:
                reason = "no JSON: brackets or quotes are not closed"
            yield row, reason
            if row is not None:
                self._start = end
            else:
                self._go_on(end, whole)

    def _limit(self) -> int:
        """Where the element that starts here has to end: the next line that opens one, within suspect text."""
        if self._next_opening < self._start < self._suspect:
            # Found once and kept: where all elements stand on one line, this would read to its end for each of them.
            found = self._opening.search(self._data, self._start + 1, self._suspect)
            self._next_opening = found.start() if found else self._suspect
        return self._next_opening if self._start < self._next_opening < self._suspect else len(self._data)

    def _to_element(self) -> bool:
        """Moves to where the next element starts; False if there is none."""
        while True:
            self._start = _match(_SEPARATORS, self._data, self._start).end()
            mark = self._data[self._start : self._start + 1]
            if not mark:
                if not self._more():
                    return False
            elif mark == self._end_mark:
                self._leave()
            elif mark in (b"]", b"}"):
                self._start += 1
            else:
                break
        if self._number == 0:
            # Elements that begin on a line of their own are all indented alike, and what is nested in them is not.
            indent = _INDENT.search(self._data, 0, self._start)
            spaces = re.escape(indent[1]) if indent else rb"[ \t]*+"
            self._opening = re.compile(rb"[\r\n]" + spaces + rb"(?=\{|" + _KEY + rb")")
        self._number += 1
        return True

    def _leave(self) -> None:
        """Passes over what the object around the list still holds."""
        depth = 1 if self._end_mark == b"]" else 0
        self._end_mark = b""
        self._start += 1
        end = self._start
        while depth and (end := self._scan(self._start, depth, len(self._data))[0]) < 0 and self._more():
            pass
        self._start = end if end >= 0 else len(self._data)

    def _scan(self, position: int, depth: int, limit: int) -> tuple[int, bool]:
        """Where the brackets opened so far are closed (a value without brackets: the next comma or bracket), and True.

        Or where it shows that they never will be, at `limit` at the latest, and False; -1 and False if the text at hand
        ends before one can tell.
        """
        data = self._data
        while True:
            stop = _match(_TO_BRACKET if depth else _TO_COMMA, data, position, limit).end()
            if stop == limit:
                return -1 if limit == len(data) else limit, False
            byte = data[stop]
            if byte == _QUOTE:
                return -1 if limit == len(data) and _CUT_STRING.match(data, stop) else stop, False
            if not depth and stop > position:
                return stop, byte in b",]}"
            depth += 1 if byte in b"{[" else -1
            position = stop + 1
            if depth <= 0:
                return position, True

    def _more(self) -> bool:
        """Reads on, until the text at hand is about twice as long; False at the end of the file or if it is too long."""
        size = len(self._data) - self._start
        if size > MAX_ROW_BYTES:
            return False
        chunks: list[bytes | memoryview] = [memoryview(self._data)[self._start :]]
        wanted = size + max(1, min(size, MAX_ROW_BYTES + 1 - size))
        total = size
        while total < wanted and (chunk := next(self._stream, b"")):
            chunks.append(chunk)
            total += len(chunk)
        self._data = b"".join(chunks)
        self._suspect -= self._start
        self._next_opening -= self._start
        self._start = 0
        return total > size

    def _go_on(self, end: int, whole: bool) -> None:
        """Moves from a broken element to the next line that opens one, or to its `end` if it is `whole`."""
        if end > self._suspect:
            self._suspect, self._next_opening = end, -1
        begin = self._start + 1
        while not (found := self._opening.search(self._data, begin, end if whole else len(self._data))):
            if whole:
                self._start = end
                return
            self._start = max(begin, len(self._data) - _TAIL)
            if not self._more():
                self._start = len(self._data)
                return
            begin = 0
        self._start = found.end()
