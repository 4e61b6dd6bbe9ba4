"""The pieces of a vocabulary as bytes, and texts spelled in few of them.

Axes: V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_NOT_SPELLED = 1 << 30
FEW = 16  # allowed tokens that are all tried
_PART = 256  # the kind of parts of characters and of escapes
_KINDS = np.arange(256)  # of a first byte
for _first, _last in ("09", "az", "AZ", "\x80\xff"):
    _KINDS[ord(_first) : ord(_last) + 1] = ord(_first)


@dataclass(frozen=True, slots=True)
class Closing:
    """Bytes that end an answer; the shortest spelling of `text[i:]` has `counts[i]` tokens, the first `tokens[i]`."""

    text: bytes
    tokens: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.counts[0]

    def after(self, offset: int) -> "Closing":
        """The same end without its first `offset` bytes."""
        return Closing(self.text[offset:], self.tokens[offset:], self.counts[offset:])


EMPTY = Closing(b"", (), (0,))


class Pieces:
    """The pieces of a vocabulary as bytes: spellings of bytes, and few tokens that stand for many.

    Args:
        pieces: the bytes of each id.
        special: ids that are no text.
        single_bytes: ids that spell a byte, used where no other piece has the same text.
    """

    def __init__(self, pieces: Sequence[bytes], special: Iterable[int] = (), single_bytes: Iterable[int] = ()):
        self.pieces = pieces
        self._special, bytewise = frozenset(special), frozenset(single_bytes)
        ids = [token for token, piece in enumerate(pieces) if piece and token not in self._special]
        # The last one of several ids with the same bytes is kept.
        self._ids = {pieces[token]: token for token in sorted(ids, key=lambda token: token not in bytewise)}
        self.longest = max(map(len, self._ids), default=0)
        first = np.array([pieces[token][0] for token in ids], np.uint8)
        size = np.array([len(pieces[token]) for token in ids], np.int32)
        is_part = ((size == 1) & (first >= 0x80)) | (first == ord("\\"))
        kind = np.where(is_part, _PART, _KINDS[first])
        order = np.lexsort((size, kind))
        self._order, self._kinds = np.array(ids, np.int32)[order], kind[order]

    def is_text(self, token: int) -> bool:
        """Whether `token` is an id of the vocabulary and no special one."""
        return 0 <= token < len(self.pieces) and token not in self._special

    def closing(self, text: bytes) -> Closing | None:
        """`text` with its shortest spellings; None where no tokens spell it.

        >>> Pieces([b"a", b"b", b"ab"]).closing(b"bab")
        Closing(text=b'bab', tokens=(1, 2, 1), counts=(2, 1, 1, 0))
        """
        tokens, counts = [-1] * len(text), [_NOT_SPELLED] * len(text) + [0]
        for start in reversed(range(len(text))):
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                token = self._ids.get(text[start:end])
                if token is not None and counts[end] < counts[start] - 1:
                    tokens[start], counts[start] = token, counts[end] + 1
        return None if counts[0] >= _NOT_SPELLED else Closing(text, tuple(tokens), tuple(counts))

    def spelling(self, closing: Closing) -> list[int]:
        """Ids of `closing.text`, as few as possible."""
        ids: list[int] = []
        offset = 0
        while offset < len(closing.text):
            ids.append(closing.tokens[offset])
            offset += len(self.pieces[ids[-1]])
        return ids

    def samples(self, mask: bytes) -> list[int]:
        """Of the allowed tokens, the shortest and the longest of each kind of first byte; all of them where few are.

        `mask` has one bit a token. Kinds are digits, small letters, capital letters, what is not ASCII, and any other
        byte by itself. Parts of characters and escapes, which end nothing, count only where nothing else is allowed.
        """
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        places = np.flatnonzero(allowed[self._order])
        if len(places) > FEW:
            kinds = self._kinds[places]
            changes = np.flatnonzero(np.diff(kinds))
            ends = np.unique(np.concatenate([[0], changes, changes + 1, [len(places) - 1]]))
            places = places[ends[kinds[ends] != _PART] if kinds[0] != _PART else ends]
        return self._order[places].tolist()
