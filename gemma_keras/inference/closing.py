"""Ends of an answer under a grammar: found by search, spelled in few tokens.

A grammar sees bytes: what may follow a text does not depend on how the text was cut into tokens. An end is therefore
kept as bytes, and how few tokens spell it, from any place within it, is computed exactly. The search goes by the number
of tokens and tries few of the tokens that a grammar allows; states that allow the same tokens count as one, but for the
shortest and the longest text that leads there. So it may miss the shortest end; whatever it finds is an end.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

_NOT_SPELLED = 1 << 30
_FEW = 16  # allowed tokens that are all tried
_LITERALS = 48  # characters of a grammar's source that are tried
_KNOWN = 4  # ends that are kept of states that allow the same tokens

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Closing:
    """Bytes that end an answer; the shortest spelling of `text[i:]` has `counts[i]` tokens, the first `tokens[i]`."""

    text: bytes
    tokens: tuple[int, ...]
    counts: tuple[int, ...]

    def after(self, offset: int) -> "Closing":
        """The same end without its first `offset` bytes."""
        return Closing(self.text[offset:], self.tokens[offset:], self.counts[offset:])


EMPTY = Closing(b"", (), (0,))


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a search tries.

    `width` texts of one number of tokens are kept, about `visits` texts are read in all, `fine` samples go by single
    first bytes, and with `any_end` the first end that is found will do.
    """

    width: int
    visits: int
    fine: bool = False
    any_end: bool = False


QUICK = Effort(width=8, visits=400, any_end=True)
THOROUGH = Effort(width=24, visits=4_000)
WIDE = Effort(width=48, visits=20_000, fine=True)
DEEP = Effort(width=1, visits=20_000, any_end=True)  # for ends of hundreds of tokens


class Pieces:
    """The pieces of a vocabulary as bytes: spellings of bytes, and few tokens that stand for many.

    Args:
        pieces: the bytes of each id.
        special: ids that are no text.
        single_bytes: ids that spell a byte, used where no other piece has the same text.
    """

    def __init__(self, pieces: Sequence[bytes], special: Iterable[int] = (), single_bytes: Iterable[int] = ()):
        self.pieces = pieces
        left_out, bytewise = set(special), set(single_bytes)
        ids = [token for token, piece in enumerate(pieces) if piece and token not in left_out]
        # The last one of several ids with the same bytes is kept.
        self._ids = {pieces[token]: token for token in sorted(ids, key=lambda token: token not in bytewise)}
        self._longest = max(map(len, self._ids), default=0)
        self._coarse = _Order(pieces, ids, _KINDS, parts=True)
        self._fine = _Order(pieces, ids, range(256), parts=False)

    def closing(self, text: bytes) -> Closing | None:
        """`text` with its shortest spellings; None where no tokens spell it.

        >>> Pieces([b"a", b"b", b"ab"]).closing(b"bab")
        Closing(text=b'bab', tokens=(1, 2, 1), counts=(2, 1, 1, 0))
        """
        tokens, counts = [-1] * len(text), [_NOT_SPELLED] * len(text) + [0]
        for start in reversed(range(len(text))):
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
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

    def samples(self, mask: bytes, fine: bool) -> list[int]:
        """Of the allowed tokens, the shortest and the longest of each kind of first byte; all of them where few are.

        `mask` has one bit a token. Kinds are digits, small letters, capital letters, what is not ASCII, and any other
        byte by itself; with `fine`, each byte by itself. Parts of characters count only where nothing else is allowed,
        or with `fine`.
        """
        return (self._fine if fine else self._coarse).samples(mask)


def _kind(byte: int) -> int:
    character = chr(byte)
    if byte >= 0x80:
        return 0x80
    return ord(
        "0" if character.isdigit() else "a" if character.islower() else "A" if character.isupper() else character
    )


_KINDS = tuple(map(_kind, range(256)))
_PART = 256  # the kind of a part of a character


class _Order:
    """Tokens ordered by the kind of their first byte, then by length."""

    def __init__(self, pieces: Sequence[bytes], ids: Sequence[int], kinds: Sequence[int], parts: bool):
        def kind(piece: bytes) -> int:
            return _PART if parts and len(piece) == 1 and piece[0] >= 0x80 else kinds[piece[0]]

        order = sorted(ids, key=lambda token: (kind(pieces[token]), len(pieces[token])))
        self._order = np.array(order, np.int32)
        self._kinds = np.array([kind(pieces[token]) for token in order], np.int32)

    def samples(self, mask: bytes) -> list[int]:
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        places = np.flatnonzero(allowed[self._order])
        if len(places) > _FEW:
            kinds = self._kinds[places]
            changes = np.flatnonzero(np.diff(kinds))
            ends = np.unique(np.concatenate([[0], changes, changes + 1, [len(places) - 1]]))
            places = places[ends[kinds[ends] != _PART] if kinds[0] != _PART else ends]
        return self._order[places].tolist()


class Search:
    """Looks for an end of what a matcher has read.

    Args:
        matcher: which the search may spoil.
        pieces: of the matcher's tokenizer.
        literals: what the grammar spells out, to be tried wherever it is allowed.
        tail: gives the bytes of a known end that fits after what a matcher has read, or None.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        pieces: Pieces,
        literals: Sequence[Path] = (),
        tail: Callable[[LLMatcher], bytes | None] = lambda matcher: None,
    ):
        self._matcher, self._pieces, self._literals, self._tail = matcher, pieces, literals, tail
        self._path: Path = ()

    def run(self, most: int, effort: Effort) -> Closing | None:
        """The shortest end that is found, of at most `most` tokens."""
        visits, best = effort.visits, None
        levels: dict[int, list[Path]] = {0: [()]}
        for level in range(most):
            if not levels or level >= most:
                break
            for path, mask in self._distinct(levels.pop(level, []), effort.width):
                if visits <= 0 or not self._move(path):
                    return best
                for step in self._steps(mask, effort.fine):
                    visits -= 1
                    child = path + step
                    if not self._move(child):
                        return best
                    end = b"" if self._matcher.is_accepting() else self._tail(self._matcher)
                    if end is None:
                        levels.setdefault(len(child), []).append(child)
                        continue
                    found = self._pieces.closing(self._bytes(child) + end)
                    if found is not None and found.counts[0] <= most:
                        best, most = found, found.counts[0] - 1
                        if effort.any_end:
                            return best
        return best

    def _bytes(self, path: Path) -> bytes:
        return b"".join(self._pieces.pieces[token] for token in path)

    def _move(self, path: Path) -> bool:
        """Lets the matcher have read `path`; False where it broke, as it does at llguidance's limits."""
        common = 0
        for ours, theirs in zip(self._path, path, strict=False):
            if ours != theirs:
                break
            common += 1
        back = len(self._path) - common
        self._path = path
        if back and not self._matcher.rollback(back):
            return False
        return all(map(self._matcher.consume_token, path[common:]))

    def _steps(self, mask: bytes, fine: bool) -> list[Path]:
        """What to try next: all bytes that the grammar forces, or else some of the tokens that it allows."""
        forced = _whole_characters(self._matcher.compute_ff_bytes())
        closing = self._pieces.closing(forced) if forced else None
        if closing is not None:
            return [tuple(self._pieces.spelling(closing))]
        spelled_out = [path for path in self._literals if self._matcher.validate_tokens(list(path)) == len(path)]
        return list(dict.fromkeys([*spelled_out, *((token,) for token in self._pieces.samples(mask, fine))]))

    def _distinct(self, paths: list[Path], width: int) -> list[tuple[Path, bytes]]:
        """Paths with their masks: the shortest and the longest text of each mask, those that allow least if too many."""
        groups: dict[bytes, list[Path]] = {}
        for path in paths:
            if self._move(path):
                groups.setdefault(self._matcher.compute_bitmask(), []).append(path)
            if self._matcher.is_error():
                return []
        kept = []
        for mask, group in groups.items():
            group.sort(key=lambda path: len(self._bytes(path)))
            kept += [(path, mask) for path in dict.fromkeys((group[0], group[-1]))]
        if len(kept) > width:
            kept.sort(key=lambda item: int.from_bytes(item[1], "little").bit_count())
        return kept[:width]


def _whole_characters(text: bytes) -> bytes:
    """`text` without a character at its end that is cut.

    >>> _whole_characters("a你".encode()[:-1])
    b'a'
    """
    for back, byte in enumerate(reversed(text[-3:]), start=1):
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-back] if back < size else text
        if byte < 0x80:
            break
    return text


class Options:
    """Ends of an answer that is one of some texts; exact.

    Args:
        options: the texts.
        pieces: of the tokenizer.
    """

    def __init__(self, options: Iterable[bytes], pieces: Pieces):
        self._options, self._pieces = sorted(set(options)), pieces
        self._shortest: dict[bytes, Closing | None] = {}

    def end(self, text: bytes, most: int) -> Closing | None:
        """What is missing of an option that begins with `text`: at most `most` tokens, or else as few as possible."""
        if text in self._shortest:
            return self._shortest[text]
        shortest: Closing | None = None
        for index in range(bisect.bisect_left(self._options, text), len(self._options)):
            if not self._options[index].startswith(text):
                break
            closing = self._pieces.closing(self._options[index][len(text) :])
            if closing is not None and (shortest is None or closing.counts[0] < shortest.counts[0]):
                shortest = closing
                if closing.counts[0] <= most:
                    return closing
        self._shortest[text] = shortest
        return shortest


class Ends:
    """Finds ends of what matchers of one grammar have read, and remembers them.

    Args:
        pieces: of the tokenizer.
        stop_id: the id that matchers take for a stop.
        literals: characters that the grammar spells out; few are used.
    """

    def __init__(self, pieces: Pieces, stop_id: int, literals: str):
        self._pieces, self._stop_id = pieces, stop_id
        closings = [pieces.closing(character.encode()) for character in list(dict.fromkeys(literals))[:_LITERALS]]
        self._literals = [tuple(pieces.spelling(closing)) for closing in closings if closing is not None]
        self._known: dict[int, list[Closing]] = {}
        self._in_vain: dict[int, int] = {}

    def shortest(self, matcher: LLMatcher, enough: int) -> Closing | None:
        """The shortest end that is found by all means, or one of at most `enough` tokens."""
        best: Closing | None = EMPTY if matcher.is_accepting() else None
        for effort in (QUICK, THOROUGH, WIDE, DEEP):
            if best is not None and best.counts[0] <= enough:
                break
            most = _NOT_SPELLED if best is None else best.counts[0] - 1
            best = Search(matcher.deep_copy(), self._pieces, self._literals).run(most, effort) or best
        return best

    def end(self, matcher: LLMatcher, hints: Sequence[Closing], most: int) -> Closing | None:
        """An end of at most `most` tokens of what `matcher` has read, perhaps one of `hints`; None if none is found."""
        if matcher.is_accepting():
            return EMPTY
        found = self._first_that_fits(matcher, hints, most)
        if found is not None:
            return found
        # States that allow the same tokens often have the same ends, but not always: each is checked.
        key = hash(matcher.compute_bitmask())
        known = self._known.setdefault(key, [])
        found = self._first_that_fits(matcher, known, most)
        if found is not None or most <= self._in_vain.get(key, 0) or matcher.is_error():
            return found
        for effort in (QUICK, THOROUGH, DEEP):
            search = Search(matcher.deep_copy(), self._pieces, self._literals, lambda reader: self._tail(reader, hints))
            found = search.run(most, effort)
            if found is not None:
                known.append(found)
                known.sort(key=lambda closing: closing.counts[0])
                del known[_KNOWN:]
                return found
        self._in_vain[key] = most
        return None

    def _tail(self, matcher: LLMatcher, hints: Sequence[Closing]) -> bytes | None:
        fitting = self._first_that_fits(matcher, hints, _NOT_SPELLED)
        return None if fitting is None else fitting.text

    def _first_that_fits(self, matcher: LLMatcher, closings: Sequence[Closing], most: int) -> Closing | None:
        short = (closing for closing in closings if closing.counts[0] <= most)
        return next((closing for closing in short if self.fits(matcher, closing)), None)

    def fits(self, matcher: LLMatcher, closing: Closing, before: int | None = None) -> bool:
        """Whether `closing` ends what `matcher` has read, `before` being one more token that it reads first."""
        start = [] if before is None else [before]
        # The first token alone spares most spellings.
        if not start and closing.tokens and matcher.validate_tokens([closing.tokens[0]]) != 1:
            return False
        ids = [*start, *self._pieces.spelling(closing), self._stop_id]
        return matcher.validate_tokens(ids) == len(ids)
