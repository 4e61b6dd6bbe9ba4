"""Files to UTF-8: decompressed, transcoded and split into lines piece by piece, in constant memory."""

import codecs
import gzip
import itertools
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow

MAX_ROW_BYTES = 32 << 20
"""The longest row, in bytes of UTF-8. Longer ones are reported and skipped, never held."""

COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 20
# A read that meets damage loses what it already had, so compressed files are read in small pieces.
_PIECE = 2048
_MARKS = ((codecs.BOM_UTF8, ""), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_RARE_LEAD_BYTES = bytes(range(0xD8, 0x100))


class ByteStream:
    """The UTF-8 text of a file: an iterator of chunks of about 1 MiB, none of which ends between `\\r` and `\\n`.

    A byte order mark decides for UTF-8 or UTF-16. Without one a file is UTF-8; or GB18030, if in its first chunk
    that is not ASCII more lines look like Chinese in GB18030 than are UTF-8 (see `is_chinese_gb18030`). Bytes that are
    wrong in the file's encoding come through as bytes that are no UTF-8: the row that holds them can be set aside, and
    never turns into other characters silently.

    Attributes:
        damage: why the file ended early (it cannot be read, or its compressed stream is cut or corrupt); else empty.
            What gzip's checksum alone gives away is known at the end, when the rows are already out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        self._chunks: Iterator[bytes] = self._transcoded()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def give_back(self, chunk: bytes) -> None:
        """Makes `chunk` the next one."""
        self._chunks = itertools.chain([chunk] if chunk else [], self._chunks)

    def open(self) -> BinaryIO:
        """The file as it lies on the disk. Raises OSError, also for what is no regular file: a pipe would block."""
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise OSError("not a regular file")
        return self.path.open("rb")

    def lines(self) -> Iterator[bytes | None]:
        """Lines with their ends (`\\n`, `\\r\\n` or `\\r`); None for one longer than MAX_ROW_BYTES.

        A last line that damage has cut off is left out.
        """
        rest, skipping = b"", False
        for chunk in self:
            lines: list[bytes | None] = [*(rest + chunk).splitlines(keepends=True)]
            rest = b"" if chunk.endswith((b"\n", b"\r")) else lines.pop() or b""
            if lines and (skipping or len(lines[0] or b"") > MAX_ROW_BYTES):
                lines[0], skipping = None, False
            yield from lines
            if skipping or len(rest) > MAX_ROW_BYTES:
                rest, skipping = b"", True
        if (rest or skipping) and not self.damage:
            yield None if skipping else rest

    def _raw(self) -> Iterator[bytes]:
        try:
            with self.open() as file:
                suffix = self.path.suffix.lower()
                if suffix == ".gz":
                    yield from self._decompressed(gzip.GzipFile(fileobj=file).read1)
                elif suffix == ".zst":
                    yield from self._decompressed(pyarrow.CompressedInputStream(file, "zstd").read)
                else:
                    yield from iter(lambda: file.read(_CHUNK), b"")
        except OSError as error:
            self.damage = f"cannot be read: {error.strerror or error}"

    def _decompressed(self, read: Callable[[int], bytes]) -> Iterator[bytes]:
        size = _CHUNK
        while size >= _CHUNK:
            pieces, size = [], 0
            try:
                while size < _CHUNK and (piece := read(_PIECE)):
                    pieces.append(piece)
                    size += len(piece)
            except (OSError, EOFError, zlib.error) as error:
                self.damage = f"compressed data is cut or corrupt: {error}"
                size = 0
            if pieces:
                yield b"".join(pieces)

    def _transcoded(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        mark, codec = next((entry for entry in _MARKS if first.startswith(entry[0])), (b"", ""))
        told, held = bool(mark), b""
        decoder = codecs.getincrementaldecoder(codec)("surrogatepass") if codec else None
        errors = "surrogatepass"
        for chunk in itertools.chain((first.removeprefix(mark),), raw):
            if not told and not chunk.isascii():
                told = True
                if _is_gb18030_file(chunk):
                    errors = "surrogateescape"
                    decoder = codecs.getincrementaldecoder("gb18030")(errors)
            text = held + (decoder.decode(chunk).encode("utf-8", errors) if decoder else chunk)
            held = b"\r" if text.endswith(b"\r") else b""
            if len(text) > len(held):
                yield text.removesuffix(held)
        try:
            held += decoder.decode(b"", final=True).encode("utf-8", errors) if decoder else b""
        except UnicodeDecodeError:
            self.damage = self.damage or f"ends within a character of {codec}"
        if held:
            yield held


def is_chinese_gb18030(line: bytes) -> bool:
    """Whether bytes are GB18030 and at least half of their characters beyond ASCII are everyday Chinese.

    Everyday: punctuation, full-width letters and the 3,755 characters of level 1 of GB 2312. Stray Latin-1 or UTF-8
    bytes mostly fail to decode, or give rare characters.
    """
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(line)
    except UnicodeDecodeError:
        return False
    wide = [character for character in text if not character.isascii()]
    leads = "".join(wide).encode("gb2312", "ignore")[::2]
    return 2 * len(leads.translate(None, _RARE_LEAD_BYTES)) >= len(wide) > 0


def _is_gb18030_file(chunk: bytes) -> bool:
    lines = [line for line in chunk.splitlines() if not line.isascii()]
    utf8 = sum(_is_utf8(line) for line in lines)
    return utf8 < len(lines) and sum(is_chinese_gb18030(line) for line in lines if not _is_utf8(line)) > utf8


def _is_utf8(line: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)  # the chunk may end within a character
    except UnicodeDecodeError:
        return False
    return True
