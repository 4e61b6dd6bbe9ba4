"""Ends of an answer under a grammar: found by search, spelled in few tokens.

A grammar sees bytes: what may follow a text does not depend on how the text was cut into tokens. An end is therefore
kept as bytes, and how few tokens spell it, from any place within it, is computed exactly. The search goes by the number
of tokens and tries few of the tokens that a grammar allows; states that allow the same tokens count as one, but for the
shortest and the longest text that leads there. So it may miss the shortest end; whatever it finds is an end.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from llguidance import LLMatcher

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Choice, Constraint, described, literals
from gemma_keras.inference.constraints.pieces import EMPTY, FEW, Closing, Pieces

_LITERALS = 48  # texts that a grammar spells out and that are tried
_KNOWN, _STATES = 4, 4096  # ends that are kept of states that allow the same tokens, and such states
_DETOURS = 1000  # parts of an end that are left out by way of trial
_SHARE = 4  # an end of 1 / _SHARE of the tokens is short enough
_BEYOND, _LEAST_LIMIT = 4, 1024  # ends are looked for of _BEYOND times the tokens, or of _LEAST_LIMIT
_NONE = Closing(b"", (), (1 << 30,))  # longer than any end


class _Effort(NamedTuple):
    """How hard a search tries: `width` texts of one number of tokens are kept, `cost` are tried at most, and with
    `any_end` the first end that is found will do."""

    width: int
    cost: int
    any_end: bool = False


QUICK = _Effort(width=4, cost=1_000, any_end=True)
DEEP = _Effort(width=1, cost=20_000, any_end=True)  # for ends of hundreds of tokens
THOROUGH = _Effort(width=32, cost=30_000)


class _Text(NamedTuple):
    """A text that is looked at, as `reader` has read it: `tokens` of it, how many of its bytes came where little was allowed
    (`narrow`), and the literal that it ends with."""

    reader: LLMatcher
    text: bytes = b""
    tokens: int = 0
    narrow: int = 0
    literal: tuple[int, ...] = ()


class Ends:
    """Finds ends of what matchers of one constraint have read, and remembers them.

    Args:
        constraint: what answers have to be.
        start: its matcher, which has read nothing.
        pieces: of the tokenizer.
        stop_id: the id that matchers take for a stop.
    """

    def __init__(self, constraint: Constraint, start: LLMatcher, pieces: Pieces, stop_id: int):
        self.start, self.pieces = start, pieces
        self._stop_id, self._name = stop_id, described(constraint)
        spelled = [pieces.closing(literal.encode()) for literal in literals(constraint)[:_LITERALS]]
        self._literals = [tuple(pieces.spelling(closing)) for closing in spelled if closing is not None]
        self._options = sorted({o.encode() for o in constraint.options}) if isinstance(constraint, Choice) else None
        self._missing: dict[bytes, Closing] = {}  # the shortest end of an option, by how it begins
        self._first = _NONE
        self._searched = 0
        # By the allowed tokens: ends that were found, and of how many tokens none was.
        self._states: dict[int, tuple[list[Closing], int]] = {}

    def first(self, most: int) -> Closing:
        """An answer of at most `most` tokens.

        Raises:
            UserError: none was found.
        """
        limit = max(_LEAST_LIMIT, _BEYOND * most)
        if self._first.size > most and self._searched < (limit if self._first is _NONE else 1):
            # A long end would soon keep the answer from going on, so that a shorter one is worth some time.
            enough = most // _SHARE
            found = self._shortest(enough, limit) if self._options is None else self._option(b"", enough)
            self._first = min(self._first, found or _NONE, key=lambda closing: closing.size)
            if self._first.size > enough:
                self._searched = limit
        if self._first.size > most:
            least = "none was found" if self._first is _NONE else f"the shortest found has {self._first.size}"
            raise UserError(
                f"an answer of at most {most} tokens was asked for {self._name}, but {least}; "
                "raise max_new_tokens or loosen the constraint."
            )
        return self._first

    def _shortest(self, enough: int, most: int) -> Closing | None:
        """The shortest answer of at most `most` tokens that is found by all means, or one of at most `enough`."""
        best: Closing | None = EMPTY if self.start.is_accepting() else None
        for effort in (QUICK, DEEP, THOROUGH):
            if best is None or best.size > enough:
                found = self._search(self.start, most if best is None else best.size - 1, effort)
                best = best if found is None else self._without_detours(found)
        return best

    def _without_detours(self, closing: Closing) -> Closing:
        """`closing` without the parts between whose ends an answer may pass at once, such as items of a list."""
        reader, start, tries = self.start.deep_copy(), 0, _DETOURS
        while start < len(closing.text) and tries > 0:
            for offset in range(len(closing.text) - 1, start, -1):
                token = closing.tokens[offset]  # -1 where no spelling goes on
                if token >= 0 and reader.validate_tokens([token]) == 1:
                    tries -= 1
                    if self.fits(reader, closing.after(offset)):
                        closing = self.pieces.closing(closing.text[:start] + closing.text[offset:]) or closing
                        break
            reader.consume_token(closing.tokens[start])
            start += len(self.pieces.pieces[closing.tokens[start]])
        return closing

    def after(
        self, reader: LLMatcher, text: bytes, hints: Sequence[Closing], most: int, efforts: Sequence[_Effort]
    ) -> Closing | None:
        """An end of at most `most` tokens of `text`, which `reader` has read, perhaps one of `hints`; None: none is found."""
        if self._options is not None:
            found = self._option(text, most)
            return found if found is not None and found.size <= most else None
        if reader.is_accepting():
            return EMPTY
        found = self._fitting(reader, hints, most)
        if found is not None:
            return found
        # States that allow the same tokens often have the same ends, but not always: each is checked.
        key = hash(reader.compute_bitmask())
        known, in_vain = self._states.get(key, ([], 0))
        found = self._fitting(reader, known, most)
        if found is not None or most <= in_vain or reader.is_error():
            return found
        for effort in efforts:
            found = found or self._search(reader, most, effort, hints)
        added = sorted([*known, found], key=lambda closing: closing.size)[:_KNOWN] if found is not None else known
        self._states[key] = (added, in_vain if found is not None else most)
        if len(self._states) > _STATES:
            del self._states[next(iter(self._states))]
        return found

    def fits(self, reader: LLMatcher, closing: Closing) -> bool:
        """Whether `closing` ends what `reader` has read."""
        # The first token alone spares most spellings.
        if closing.tokens and reader.validate_tokens([closing.tokens[0]]) != 1:
            return False
        ids = [*self.pieces.spelling(closing), self._stop_id]
        return reader.validate_tokens(ids) == len(ids)

    def _fitting(self, reader: LLMatcher, closings: Sequence[Closing], most: int) -> Closing | None:
        short = (closing for closing in closings if closing.size <= most)
        return next((closing for closing in short if self.fits(reader, closing)), None)

    def _option(self, text: bytes, most: int) -> Closing | None:
        """What is missing of an option that begins with `text`: at most `most` tokens, or else as few as possible."""
        assert self._options is not None
        if text not in self._missing:
            shortest = _NONE
            candidates = self._options[bisect.bisect_left(self._options, text) :]
            for option in itertools.takewhile(lambda option: option.startswith(text), candidates):
                closing = self.pieces.closing(option[len(text) :])
                shortest = min(shortest, closing or _NONE, key=lambda closing: closing.size)
                if shortest.size <= most:
                    return shortest
            self._missing[text] = shortest
        return self._missing[text] if self._missing[text] is not _NONE else None

    def _search(self, start: LLMatcher, most: int, effort: _Effort, hints: Sequence[Closing] = ()) -> Closing | None:
        """The shortest end that is found of what `start` has read, of at most `most` tokens."""
        best: Closing | None = None
        cost, longest, seen = effort.cost, most * self.pieces.longest, set[int]()
        levels = {0: [_Text(start.deep_copy())]}
        for level in range(most):
            if not levels or level >= most:
                break
            for text, mask in _distinct(levels.pop(level, []), effort.width, seen):
                for child in self._children(text, mask, longest):
                    cost -= 1
                    if cost < 0 or child.reader.is_error():
                        return best
                    tail = EMPTY if child.reader.is_accepting() else self._fitting(child.reader, hints, 1 << 29)
                    if tail is None:
                        levels.setdefault(child.tokens, []).append(child)
                        continue
                    found = self.pieces.closing(child.text + tail.text)
                    if found is not None and found.size <= most:
                        best, most = found, found.size - 1
                        if effort.any_end:
                            return best
        return best

    def _children(self, text: _Text, mask: bytes, longest: int) -> list[_Text]:
        """What to try next: all bytes that the grammar forces, or else some of the tokens that it allows."""
        forced = text.reader.compute_ff_bytes()
        if len(forced) > longest:
            return []
        closing = self.pieces.closing(forced) if forced else None
        if closing is not None:
            return [self._longer(text, tuple(self.pieces.spelling(closing)), narrow=True)]
        narrow = _ones(mask) <= FEW
        spelled = [path for path in self._literals if text.reader.validate_tokens(list(path)) == len(path)]
        samples = [(token,) for token in self.pieces.samples(mask) if (token,) not in spelled]
        children = [self._longer(text, path, narrow)._replace(literal=path) for path in spelled]
        return children + [self._longer(text, path, narrow) for path in samples]

    def _longer(self, text: _Text, path: tuple[int, ...], narrow: bool) -> _Text:
        reader, new = text.reader.deep_copy(), b"".join(self.pieces.pieces[token] for token in path)
        reader.consume_tokens(list(path))
        return _Text(reader, text.text + new, text.tokens + len(path), text.narrow + len(new) * narrow)


def _distinct(texts: Sequence[_Text], width: int, seen: set[int]) -> list[tuple[_Text, bytes]]:
    """The shortest and the longest text of each mask, with it; if too many, those that seem nearest to an end.

    Texts that end with a literal count apart: within `.*end` it changes the state, but not what is allowed.
    """
    groups: dict[tuple[bytes, tuple[int, ...]], list[_Text]] = {}
    for text in texts:
        groups.setdefault((text.reader.compute_bitmask(), text.literal), []).append(text)
    kept = []
    for (mask, _), group in groups.items():
        group.sort(key=lambda text: len(text.text))
        kept += [(text, mask) for text in group[:1] + group[1:][-1:]]
    if len(kept) > width:
        # Loops come back to masks that were seen before; structure shows where little is allowed.
        kept.sort(key=lambda item: (hash(item[1]) in seen, -item[0].narrow, _ones(item[1])))
    seen.update(hash(mask) for mask, _ in groups)
    return kept[:width]


def _ones(mask: bytes) -> int:
    return int.from_bytes(mask, "little").bit_count()
