"""Ends of an answer under a grammar: found by search, spelled in few tokens.

A grammar sees bytes: what may follow a text does not depend on how the text was cut into tokens. An end is therefore
kept as bytes, and how few tokens spell it, from any place within it, is computed exactly. The search goes by the number
of tokens and tries few of the tokens that a grammar allows; states that allow the same tokens count as one, but for the
shortest and the longest text that leads there. So it may miss the shortest end; whatever it finds is an end.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher

from gemma_keras.inference.pieces import EMPTY, FEW, Closing, Pieces

_NO_LIMIT = 1 << 30
_LITERALS = 48  # texts that a grammar spells out and that are tried
_DETOURS = 1000  # parts of an end that are left out by way of trial
_KNOWN = 4  # ends that are kept of states that allow the same tokens
_STATES = 4096  # sets of allowed tokens of which ends are kept

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a search tries.

    `width` texts of one number of tokens are kept, `fine` samples go by single first bytes, and with `any_end` the first
    end that is found will do. `cost` is the most that is spent: one for each text, and for some tokens that are read
    again to come back to it.
    """

    width: int
    cost: int
    fine: bool = False
    any_end: bool = False


QUICK = Effort(width=4, cost=1_000, any_end=True)
THOROUGH = Effort(width=24, cost=10_000)
WIDE = Effort(width=48, cost=40_000, fine=True)
DEEP = Effort(width=1, cost=20_000, any_end=True)  # for ends of hundreds of tokens
_READ_AGAIN = 8  # tokens that cost as much as a text


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
        self._cost = 0
        self._longest_forced = 0
        self._seen: set[int] = set()

    def run(self, most: int, effort: Effort) -> Closing | None:
        """The shortest end that is found, of at most `most` tokens."""
        best: Closing | None = None
        self._longest_forced = most * self._pieces.longest
        levels: dict[int, list[_Text]] = {0: [_Text()]}
        for level in range(most):
            if not levels or level >= most:
                break
            for text, mask in self._distinct(levels.pop(level, []), effort.width):
                if self._cost >= effort.cost or not self._move(text.path):
                    return best
                for child in self._children(text, mask, effort.fine):
                    if not self._move(child.path):
                        return best
                    end = b"" if self._matcher.is_accepting() else self._tail(self._matcher)
                    if end is None:
                        levels.setdefault(len(child.path), []).append(child)
                        continue
                    found = self._pieces.closing(self._bytes(child.path) + end)
                    if found is not None and found.counts[0] <= most:
                        best, most = found, found.counts[0] - 1
                        if effort.any_end:
                            return best
        return best

    def _bytes(self, path: Path) -> bytes:
        return b"".join(self._pieces.pieces[token] for token in path)

    def _move(self, path: Path) -> bool:
        """Lets the matcher have read `path`; False where it broke, as it does at llguidance's limits."""
        common = _common(self._path, path)
        back = len(self._path) - common
        self._path = path
        self._cost += 1 + (len(path) - common) // _READ_AGAIN
        if back and not self._matcher.rollback(back):
            return False
        return all(map(self._matcher.consume_token, path[common:]))

    def _children(self, text: "_Text", mask: bytes, fine: bool) -> list["_Text"]:
        """What to try next: all bytes that the grammar forces, or else some of the tokens that it allows."""
        forced = _whole_characters(self._matcher.compute_ff_bytes())
        if len(forced) > self._longest_forced:
            return []
        closing = self._pieces.closing(forced) if forced else None
        if closing is not None:
            return [text.longer(tuple(self._pieces.spelling(closing)), len(forced), narrow=True)]
        narrow = _ones(mask) <= FEW
        literals = [path for path in self._literals if self._matcher.validate_tokens(list(path)) == len(path)]
        samples = [(token,) for token in self._pieces.samples(mask, fine) if (token,) not in literals]
        children = [text.longer(path, len(self._bytes(path)), narrow, literal=path) for path in literals]
        return children + [text.longer(path, len(self._bytes(path)), narrow) for path in samples]

    def _distinct(self, texts: list["_Text"], width: int) -> list[tuple["_Text", bytes]]:
        """The shortest and the longest text of each mask, with it; if too many, those that seem nearest to an end.

        Texts that end with a literal count apart: within `.*end` it changes the state, but not what is allowed.
        """
        groups: dict[tuple[bytes, Path], list[_Text]] = {}
        for text in texts:
            if self._move(text.path):
                groups.setdefault((self._matcher.compute_bitmask(), text.literal), []).append(text)
            if self._matcher.is_error():
                return []
        kept = []
        for (mask, _), group in groups.items():
            group.sort(key=lambda text: text.size)
            kept += [(text, mask) for text in dict.fromkeys((group[0], group[-1]))]
        if len(kept) > width:
            # Loops come back to masks that were seen before; structure shows where little is allowed.
            kept.sort(key=lambda item: (hash(item[1]) in self._seen, -item[0].narrow, _ones(item[1])))
        self._seen.update(hash(mask) for mask, _ in groups)
        return kept[:width]


class _Text(NamedTuple):
    """A text that is looked at.

    `path` are its tokens, `size` its bytes, `narrow` how many of these came where little was allowed;
    `literal` is the one that it ends with.
    """

    path: Path = ()
    size: int = 0
    narrow: int = 0
    literal: Path = ()

    def longer(self, step: Path, size: int, narrow: bool, literal: Path = ()) -> "_Text":
        return _Text(self.path + step, self.size + size, self.narrow + size * narrow, literal)


def _common(one: Path, other: Path) -> int:
    """The number of tokens at the start that are the same, by bisection: comparing slices is quick.

    >>> _common((1, 2, 3, 4), (1, 2, 5))
    2
    """
    if one[:-1] == other[: len(one) - 1]:
        return len(one) - 1 + (one[-1:] == other[len(one) - 1 : len(one)]) if one else 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _ones(mask: bytes) -> int:
    return int.from_bytes(mask, "little").bit_count()


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
        literals: texts that the grammar spells out; the first ones are used.
    """

    def __init__(self, pieces: Pieces, stop_id: int, literals: Sequence[str]):
        self._pieces, self._stop_id = pieces, stop_id
        closings = [pieces.closing(literal.encode()) for literal in literals[:_LITERALS]]
        self._literals = [tuple(pieces.spelling(closing)) for closing in closings if closing is not None]
        self._known: dict[int, list[Closing]] = {}
        self._in_vain: dict[int, int] = {}

    def shortest(self, matcher: LLMatcher, enough: int, most: int) -> Closing | None:
        """The shortest end of at most `most` tokens that is found by all means, or one of at most `enough`."""
        best: Closing | None = EMPTY if matcher.is_accepting() else None
        for effort in (QUICK, DEEP, THOROUGH, WIDE):
            if best is not None and best.counts[0] <= enough:
                break
            found = Search(matcher.deep_copy(), self._pieces, self._literals).run(most, effort)
            most = most if found is None else found.counts[0] - 1
            best = best if found is None else self._without_detours(matcher.deep_copy(), found)
        return best

    def _without_detours(self, matcher: LLMatcher, closing: Closing) -> Closing:
        """`closing` without the parts between whose ends the matcher may pass at once, such as items of a list."""
        start, tries = 0, _DETOURS
        while start < len(closing.text):
            allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            later = np.array(closing.tokens[start + 1 :], np.int32)
            # Offsets that no spelling reaches have the token -1.
            for skip in np.flatnonzero(allowed[later] & (later >= 0))[::-1].tolist():
                tries -= 1
                if tries < 0:
                    return closing
                if self.fits(matcher, closing.after(start + 1 + skip)):
                    closing = self._pieces.closing(closing.text[:start] + closing.text[start + 1 + skip :]) or closing
                    break
            matcher.consume_token(closing.tokens[start])
            start += len(self._pieces.pieces[closing.tokens[start]])
        return closing

    def end(self, matcher: LLMatcher, hints: Sequence[Closing], most: int, efforts: Sequence[Effort]) -> Closing | None:
        """An end of at most `most` tokens of what `matcher` has read, perhaps one of `hints`; None if none is found."""
        if matcher.is_accepting():
            return EMPTY
        found = self._first_that_fits(matcher, hints, most)
        if found is not None:
            return found
        # States that allow the same tokens often have the same ends, but not always: each is checked.
        key = hash(matcher.compute_bitmask())
        known = self._known.get(key, [])
        found = self._first_that_fits(matcher, known, most)
        if found is not None or most <= self._in_vain.get(key, 0) or matcher.is_error():
            return found
        for effort in efforts:
            search = Search(matcher.deep_copy(), self._pieces, self._literals, lambda reader: self._tail(reader, hints))
            found = search.run(most, effort)
            if found is not None:
                self._known[key] = sorted([*known, found], key=lambda closing: closing.counts[0])[:_KNOWN]
                if len(self._known) > _STATES:
                    del self._known[next(iter(self._known))]
                return found
        self._in_vain[key] = most
        if len(self._in_vain) > _STATES:
            del self._in_vain[next(iter(self._in_vain))]
        return None

    def _tail(self, matcher: LLMatcher, hints: Sequence[Closing]) -> bytes | None:
        fitting = self._first_that_fits(matcher, hints, _NO_LIMIT - 1)
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
