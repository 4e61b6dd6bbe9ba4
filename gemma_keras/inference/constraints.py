"""Answers that match a choice of texts, a regular expression or a JSON schema, whatever the model would say.

llguidance tells which tokens may come next. That alone does not bring an answer to its end: `(ab)*c` may go on for
ever. So a matcher always knows an end of its text that fits into the tokens that are left. A token after which no such
end is found is not taken; the next token of the known end is taken in its place. By induction every answer is a whole
match, after `max_new_tokens` tokens at the latest.

Axes: B rows, V vocabulary, W = ceil(V / 32) words of 32 bits; bit t % 32 of word t // 32 stands for token t.
"""

import collections
import functools
import os
from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper

from gemma_keras.config.errors import UserError
from gemma_keras.inference.closing import DEEP, QUICK, Effort, Ends, Options
from gemma_keras.inference.grammar import Choice, Constraint, JsonSchema, Regex, compiled, described, literals
from gemma_keras.inference.pieces import Closing, Pieces
from gemma_keras.text.tokenizer import Tokenizer

__all__ = ["Choice", "Constraint", "Grammars", "JsonSchema", "Matcher", "Regex", "allowed", "taken"]

_COMPILED = 256  # constraints that are kept compiled
_PREFIXES = 1024  # matchers that are kept for `allowed` and `taken`
_SHARE = 4  # an end of 1 / _SHARE of the tokens is short enough
_BEYOND, _LEAST_LIMIT = 4, 1024  # ends are looked for of _BEYOND times the tokens, or of _LEAST_LIMIT
_ROOM = 16  # tokens, besides twice the known end, that make it worth while to search long
_THREADED_ROWS, _THREADED_CORES = 16, 4  # from here on, threads compute masks sooner than a loop
_NEAR = 4  # bytes at the start of a known end that a token may have made superfluous


class Grammars:
    """Compiles constraints for a tokenizer, each once.

    Args:
        tokenizer: whose ids the answers have.
        stop_ids: ids that end an answer; they are never text.

    Raises:
        UserError: no stop id, or one that is not in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        size = tokenizer.vocabulary_size
        if not len(stop_ids) or not all(0 <= token < size for token in stop_ids):
            raise UserError(
                f"the stop ids {list(stop_ids)} were given for constrained answers; give at least one, "
                f"each from 0 to {size - 1}."
            )
        self.stop_ids = tuple(sorted(set(map(int, stop_ids))))
        special = tokenizer.control_ids.union(self.stop_ids)
        single_bytes = [token for token in range(size) if tokenizer.is_byte(token)]
        self.pieces = Pieces([tokenizer.piece_bytes(token) for token in range(size)], special, single_bytes)
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, self.pieces, special, self.stop_ids[0]))
        self._tokenizer = LLTokenizer(wrapper, eos_token=list(self.stop_ids))
        self._executor = LLExecutor()
        self.threaded_rows = _THREADED_ROWS if (os.cpu_count() or 1) >= _THREADED_CORES else 1 << 30
        self._compiled: collections.OrderedDict[Constraint, _Grammar] = collections.OrderedDict()
        self._by_prefix: collections.OrderedDict[tuple, Matcher] = collections.OrderedDict()

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> "Matcher":
        """A matcher of one answer of at most `max_new_tokens` tokens, a stop id not counted.

        Raises:
            UserError: a pattern or schema that cannot be used, no options, or no answer that is short enough.
        """
        if constraint not in self._compiled:
            self._compiled[constraint] = _Grammar(self, constraint, compiled(constraint, self._tokenizer))
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        return Matcher(self._compiled[constraint], max_new_tokens)

    def fill(self, matchers: Sequence["Matcher | None"], bits: np.ndarray) -> None:
        """`Matcher.fill` of many rows at once, on several cores; `bits` i32[B, W], all tokens where there is no matcher."""
        live = [
            (matcher.reader, row)
            for row, matcher in enumerate(matchers)
            if matcher is not None and not (matcher.finished or matcher.broken)
        ]
        filled: set[int] = set()
        if len(live) >= self.threaded_rows:
            self._executor.unsafe_compute_mask_ptr(live, _address(bits), bits.shape[1] * 4, len(bits))
            filled.update(row for reader, row in live if not reader.is_error())
        for row, matcher in enumerate(matchers):
            if matcher is None:
                bits.view(np.int32)[row] = -1
            elif row not in filled:
                matcher.fill(bits[row])

    def after(self, constraint: Constraint, max_new_tokens: int, tokens: Sequence[int]) -> "Matcher":
        """A matcher that has taken `tokens`, made from that of the longest beginning that is kept; read only.

        What follows the answer's end is not looked at.

        Raises:
            UserError: as `matcher`.
            ValueError: a token that is not allowed, or that would not have been `taken`.
        """
        path = tuple(map(int, tokens))
        known = len(path)
        while known and (constraint, max_new_tokens, path[:known]) not in self._by_prefix:
            known -= 1
        key = (constraint, max_new_tokens, path[:known])
        matcher = self._by_prefix.get(key) or self.matcher(constraint, max_new_tokens)
        for end in range(known + 1, len(path) + 1):
            if matcher.finished:
                break
            matcher = matcher.copy()
            if matcher.accept(path[end - 1]) != path[end - 1]:
                raise ValueError(f"token {path[end - 1]} leaves too little room for the answer's end")
            self.keep(constraint, max_new_tokens, path[:end], matcher)
        return matcher

    def keep(self, constraint: Constraint, max_new_tokens: int, tokens: tuple[int, ...], matcher: "Matcher") -> None:
        """Keeps a matcher for `after`, which must not be changed from here on."""
        self._by_prefix[constraint, max_new_tokens, tokens] = matcher
        if len(self._by_prefix) > _PREFIXES:
            self._by_prefix.popitem(last=False)


def allowed(
    grammars: Grammars, constraint: Constraint, tokens_so_far: Sequence[int], max_new_tokens: int
) -> np.ndarray:
    """Tokens that may follow those of an answer so far, u32[W]; stateless, for a host callback.

    Only with `taken` does every answer end: not all tokens that are allowed leave room for an end.

    Raises:
        UserError, ValueError: as `Grammars.after`.
    """
    bits = np.zeros(-(-len(grammars.pieces.pieces) // 32), np.uint32)
    grammars.after(constraint, max_new_tokens, tokens_so_far).fill(bits)
    return bits


def taken(
    grammars: Grammars, constraint: Constraint, tokens_so_far: Sequence[int], max_new_tokens: int, token: int
) -> int:
    """The token to take after `tokens_so_far` where an allowed `token` was drawn; a stop id after the answer's end.

    Raises:
        UserError, ValueError: as `Grammars.after`.
    """
    matcher = grammars.after(constraint, max_new_tokens, tokens_so_far)
    if matcher.finished:
        return grammars.stop_ids[0]
    matcher = matcher.copy()
    decided = matcher.accept(token)
    grammars.keep(constraint, max_new_tokens, (*map(int, tokens_so_far), decided), matcher)
    return decided


def _address(bits: np.ndarray) -> int:
    """Where llguidance writes, which does not look at what lies there."""
    if not bits.flags.c_contiguous or bits.dtype.itemsize != 4:
        raise ValueError(f"masks are contiguous 32-bit integers, not {bits.dtype} with strides {bits.strides}")
    return bits.ctypes.data


class _Vocabulary:
    """What `TokenizerWrapper` asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces, special: frozenset[int], eos_id: int):
        self._tokenizer, self._pieces, self._special = tokenizer, pieces, special
        self.tokens = pieces.pieces
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        # Asked wherever a grammar forces a text, mostly for the same texts.
        self._spelled = functools.lru_cache(maxsize=1 << 14)(self._spell)

    def __call__(self, text: bytes) -> list[int]:
        return self._spelled(text)

    def _spell(self, text: bytes) -> list[int]:
        """Ids of `text`, the tokenizer's own where they spell it exactly; U+2581, for one, would become a blank."""
        ids = self._tokenizer.encode_content(text.decode("utf-8", "replace"))
        if self._special.isdisjoint(ids) and b"".join(self.tokens[token] for token in ids) == text:
            return ids
        closing = self._pieces.closing(text)
        return [] if closing is None else self._pieces.spelling(closing)


class _Grammar:
    """A compiled constraint and what is known of its ends, shared by all of its matchers."""

    def __init__(self, grammars: Grammars, constraint: Constraint, start: LLMatcher):
        self.start, self.pieces, self.stop_ids = start, grammars.pieces, grammars.stop_ids
        self.ends = Ends(self.pieces, self.stop_ids[0], literals(constraint))
        self._name = described(constraint)
        encoded = [option.encode() for option in constraint.options] if isinstance(constraint, Choice) else []
        self._options = Options(encoded, self.pieces) if encoded else None
        self._first: Closing | None = None
        self._searched = 0

    def first_end(self, max_new_tokens: int) -> Closing:
        """An answer of at most `max_new_tokens` tokens.

        Raises:
            UserError: none was found.
        """
        if self._first is None or self._first.counts[0] > max_new_tokens:
            self._look(max_new_tokens)
        if self._first is None or self._first.counts[0] > max_new_tokens:
            least = "none was found" if self._first is None else f"the shortest found has {self._first.counts[0]}"
            raise UserError(
                f"an answer of at most {max_new_tokens} tokens was asked for {self._name}, but {least}; "
                "raise max_new_tokens or loosen the constraint."
            )
        return self._first

    def _look(self, max_new_tokens: int) -> None:
        """Looks for an answer, or a shorter one, unless all was done for that before."""
        limit = max(_LEAST_LIMIT, _BEYOND * max_new_tokens)
        if self._searched >= (limit if self._first is None else 1):
            return
        # A long end would soon keep the answer from going on, so that a shorter one is worth some time.
        enough = max_new_tokens // _SHARE
        options = self._options
        found = options.end(b"", enough) if options else self.ends.shortest(self.start, enough, limit)
        if found is not None and (self._first is None or found.counts[0] < self._first.counts[0]):
            self._first = found
        if self._first is None or self._first.counts[0] > enough:
            self._searched = limit

    def end(
        self, reader: LLMatcher, text: bytes, hints: Sequence[Closing], most: int, efforts: Sequence[Effort]
    ) -> Closing | None:
        """An end of at most `most` tokens of `text`, which `reader` has read; None where none is found."""
        if self._options is None:
            return self.ends.end(reader, hints, most, efforts)
        found = self._options.end(text, most)
        return found if found is not None and found.counts[0] <= most else None


class Matcher:
    """One answer under way; made by `Grammars.matcher`.

    Attributes:
        finished: a stop id was taken, or nothing but one may follow.
        reader: llguidance's matcher, which has read the answer so far.
        broken: `reader` gave up at one of its limits; the known end is followed from here.
    """

    def __init__(self, grammar: _Grammar, max_new_tokens: int):
        self._grammar, self._left = grammar, max_new_tokens
        self._closing = grammar.first_end(max_new_tokens)
        self._text = b""
        self.reader: LLMatcher = grammar.start.deep_copy()
        self.broken = False
        self.finished = self.reader.is_stopped() or not max_new_tokens

    def copy(self) -> "Matcher":
        """A matcher that has read the same and goes on by itself."""
        other = object.__new__(Matcher)
        vars(other).update(vars(self))
        other.reader = self.reader.deep_copy()
        return other

    def fill(self, bits: np.ndarray) -> None:
        """Writes the tokens that may come next into `bits` i32[W] or u32[W], stop ids where the answer may end."""
        if not (self.finished or self.broken):
            self.reader.unsafe_compute_mask_ptr(_address(bits), bits.nbytes)
            self.broken = self.reader.is_error()
        if self.finished or self.broken:
            words = bits.view(np.uint32)
            words[:] = 0
            for token in self._known():
                words[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> int:
        """Takes `token`, which must be allowed, or the next token of the known end if too little room would be left.

        Returns the token that was taken.

        Raises:
            ValueError: the answer has ended, or `token` is not allowed.
        """
        token = int(token)
        if self.finished:
            raise ValueError(f"token {token} was given after the answer's end")
        stops, pieces = self._grammar.stop_ids, self._grammar.pieces
        may_be = self._may_stop() if token in stops else pieces.is_text(token)
        if not may_be:
            raise ValueError(f"token {token} was given, which may not come next")
        if token not in stops and not self._goes_on(token):
            token = self._known()[0]
            self._follow(token)
        if token in stops:
            self.finished = True
            return token
        self._text += pieces.pieces[token]
        self._left -= 1
        self.broken = self.broken or self.reader.is_error()
        self.finished = not self._left or (not self._closing.text if self.broken else self.reader.is_stopped())
        return token

    def _may_stop(self) -> bool:
        return not self._closing.text if self.broken else self.reader.is_accepting()

    def _known(self) -> Sequence[int]:
        """The next token of the known end, or the stop ids."""
        return self._closing.tokens[:1] if self._closing.text and not self.finished else self._grammar.stop_ids

    def _follow(self, token: int) -> None:
        """Takes a token of the known end."""
        if token not in self._grammar.stop_ids:
            self._closing = self._closing.after(len(self._grammar.pieces.pieces[token]))
            self.broken = self.broken or not self.reader.consume_token(token)

    def _goes_on(self, token: int) -> bool:
        """Takes `token` if an end is known after it that fits; else nothing is changed."""
        if self.broken:
            return False
        left, piece = self._left - 1, self._grammar.pieces.pieces[token]
        if self._closing.text.startswith(piece) and self._closing.counts[len(piece)] <= left:
            self._follow(token)
            return True
        # Within a string, a number or a repetition the same end mostly fits again.
        if self._closing.counts[0] <= left and self._grammar.ends.fits(self.reader, self._closing, before=token):
            self.broken = not self.reader.consume_token(token)
            return not self.broken
        return self._changes_course(token, piece, left)

    def _changes_course(self, token: int, piece: bytes, left: int) -> bool:
        """Takes `token` if another end than the known one is found after it that fits."""
        may_come = self.reader.validate_tokens([token]) == 1
        self.broken = self.reader.is_error()
        if not may_come and not self.broken:
            raise ValueError(f"token {token} was given, which may not come next")
        if self.broken or not self.reader.consume_token(token):
            self.broken = True
            return False
        hints = [self._closing.after(offset) for offset in self._offsets(piece)]
        # Where there is little room, that no end is found is no surprise.
        efforts = (QUICK, DEEP) if left > 2 * self._closing.counts[0] + _ROOM else (QUICK,)
        closing = self._grammar.end(self.reader, self._text + piece, hints, left, efforts)
        if closing is not None and not self.reader.is_error():
            self._closing = closing
            return True
        self.broken = not self.reader.rollback(1)
        return False

    def _offsets(self, piece: bytes) -> list[int]:
        """Bytes of the known end that may be superfluous after `piece`, the likeliest first."""
        text = self._closing.text
        overlaps = [size for size in range(min(len(piece), len(text)), 0, -1) if piece.endswith(text[:size])]
        near = range(min(_NEAR, len(text)))
        return [offset for offset in dict.fromkeys([*overlaps, len(piece), *near]) if offset < len(text)]
