"""Answers that match a choice of texts, a regular expression or a JSON schema, whatever the model would say.

llguidance tells which tokens may come next. That alone does not bring an answer to its end: `(ab)*c` may go on for
ever. So a matcher always knows an end of its text that fits into the tokens that are left. A token after which no such
end is found is not taken; the next token of the known end is taken in its place. By induction every answer is a whole
match, after `max_new_tokens` tokens at the latest.

Axes: B rows, V vocabulary, W = ceil(V / 32) words of 32 bits; bit t % 32 of word t // 32 stands for token t.
"""

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from gemma_keras.config.errors import UserError
from gemma_keras.inference.closing import Closing, Ends, Options, Pieces
from gemma_keras.inference.text_stream import is_byte, piece_bytes
from gemma_keras.text.tokenizer import Tokenizer

# JSON in one line, with blanks where Python's json writes them or without; more could go on for ever.
_JSON_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_COMPILED = 256  # constraints that are kept compiled
_PREFIXES = 1024  # matchers that are kept for `allowed` and `taken`
_PATTERNS = re.compile(r'"pattern"\s*:\s*"((?:[^"\\]|\\.)*)"')
_ESCAPES = re.compile(r"\\u([0-9A-Fa-f]{4})|\\[ux]\{([0-9A-Fa-f]+)\}|\\x([0-9A-Fa-f]{2})")
_NEAR = 4  # bytes at the start of a known end that a token may have made superfluous


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer is one of `options`."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches `pattern`, in the syntax of Rust's `regex`: no look-around, no back-references."""

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON in one line that fits `schema`, itself JSON; keys come in the order of the schema."""

    schema: str


Constraint = Choice | Regex | JsonSchema


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
        single_bytes = [token for token in range(size) if is_byte(tokenizer, token)]
        self.pieces = Pieces([piece_bytes(tokenizer, token) for token in range(size)], special, single_bytes)
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, self.pieces, special, self.stop_ids[0]))
        self._tokenizer = LLTokenizer(wrapper, eos_token=list(self.stop_ids))
        self._executor = LLExecutor()
        self._compiled: collections.OrderedDict[Constraint, _Grammar] = collections.OrderedDict()
        self._by_prefix: collections.OrderedDict[tuple, Matcher] = collections.OrderedDict()

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> "Matcher":
        """A matcher of one answer of at most `max_new_tokens` tokens, a stop id not counted.

        Raises:
            UserError: a pattern or schema that cannot be used, no options, or no answer that is short enough.
        """
        if constraint not in self._compiled:
            self._compiled[constraint] = _Grammar(self, constraint, _compiled(constraint, self._tokenizer))
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        return Matcher(self._compiled[constraint], max_new_tokens)

    def fill(self, matchers: Sequence["Matcher | None"], bits: np.ndarray) -> None:
        """`Matcher.fill` of many rows at once, on several cores; `bits` i32[B, W], all tokens where there is no matcher."""
        together = []
        for row, matcher in enumerate(matchers):
            if matcher is None:
                bits.view(np.int32)[row] = -1
            elif matcher.finished or matcher.broken:
                matcher.fill(bits[row])
            else:
                together.append((matcher.reader, row))
        self._executor.unsafe_compute_mask_ptr(together, bits.ctypes.data, bits.shape[1] * 4, len(bits))
        for reader, row in together:
            if reader.is_error():
                matchers[row].fill(bits[row])  # type: ignore[union-attr]

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


class _Vocabulary:
    """What `TokenizerWrapper` asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces, special: frozenset[int], eos_id: int):
        self._tokenizer, self._pieces, self._special = tokenizer, pieces, special
        self.tokens = pieces.pieces
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id

    def __call__(self, text: bytes) -> list[int]:
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
        self.ends = Ends(self.pieces, self.stop_ids[0], _literals(constraint))
        self._name = _name(constraint)
        encoded = [option.encode() for option in constraint.options] if isinstance(constraint, Choice) else []
        self._options = Options(encoded, self.pieces) if encoded else None
        self._shortest: Closing | None = None
        self._is_shortest = False

    def first_end(self, max_new_tokens: int) -> Closing:
        """An answer of at most `max_new_tokens` tokens.

        Raises:
            UserError: none was found.
        """
        found = self._shortest
        if not self._is_shortest and (found is None or found.counts[0] > max_new_tokens):
            found = self._shortest = self._find_first(max_new_tokens)
            self._is_shortest = found is None or found.counts[0] > max_new_tokens
        if found is None or found.counts[0] > max_new_tokens:
            least = "none was found" if found is None else f"the shortest found has {found.counts[0]}"
            raise UserError(
                f"an answer of at most {max_new_tokens} tokens was asked for {self._name}, but {least}; "
                "raise max_new_tokens or loosen the constraint."
            )
        return found

    def _find_first(self, enough: int) -> Closing | None:
        return self._options.end(b"", enough) if self._options else self.ends.shortest(self.start, enough)

    def end(self, reader: LLMatcher, text: bytes, hints: Sequence[Closing], most: int) -> Closing | None:
        """An end of at most `most` tokens of `text`, which `reader` has read; None where none is found."""
        if self._options is None:
            return self.ends.end(reader, hints, most)
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
            self.reader.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
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
        if token in self._grammar.stop_ids and not self._may_stop():
            raise ValueError(f"the stop id {token} was given where the answer may not end")
        if token not in self._grammar.stop_ids and not self._goes_on(token):
            token = self._known()[0]
            self._follow(token)
        if token in self._grammar.stop_ids:
            self.finished = True
            return token
        self._text += self._grammar.pieces.pieces[token]
        self._left -= 1
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
        if self.reader.validate_tokens([token]) != 1:
            raise ValueError(f"token {token} was given, which the constraint does not allow")
        if not self.reader.consume_token(token):
            self.broken = True
            return False
        hints = [self._closing.after(offset) for offset in self._offsets(piece)]
        closing = self._grammar.end(self.reader, self._text + piece, hints, left)
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


def _compiled(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """llguidance's matcher of `constraint` at its start."""
    if isinstance(constraint, Choice) and not constraint.options:
        raise UserError("a choice without options was given; give at least one.")
    texts = constraint.options if isinstance(constraint, Choice) else (_text(constraint),)
    if any(re.search("[\ud800-\udfff]", text) for text in texts):
        raise UserError(f"{_name(constraint)} holds half of a surrogate pair, which is no text; remove it.")
    try:
        matcher = LLMatcher(tokenizer, _source(constraint), log_level=0, limits=LLParserLimits(verbose_errors=False))
        message = matcher.get_error()
    except ValueError as error:
        message = str(error)
    if message:
        raise UserError(f"{_name(constraint)} cannot be used: {_reason(message)}")
    return matcher


def _source(constraint: Constraint) -> str:
    if isinstance(constraint, JsonSchema):
        return LLMatcher.grammar_from_json_schema(constraint.schema, defaults=_JSON_LAYOUT)
    return LLMatcher.grammar_from_regex(_text(constraint))


def _text(constraint: Constraint) -> str:
    """The schema, or the pattern of the answers."""
    if isinstance(constraint, Choice):
        return "|".join(re.sub(r"[^0-9A-Za-z\x80-\U0010ffff]", _escaped, option) for option in constraint.options)
    return constraint.pattern if isinstance(constraint, Regex) else constraint.schema


def _escaped(character: re.Match[str]) -> str:
    return f"\\x{{{ord(character[0]):x}}}"


def _literals(constraint: Constraint) -> str:
    """Characters that patterns of the constraint may spell out, escaped ones among them."""
    if isinstance(constraint, Choice):
        return ""
    text = constraint.pattern if isinstance(constraint, Regex) else "".join(_PATTERNS.findall(constraint.schema))
    escaped = [int(code, 16) for groups in _ESCAPES.findall(text) for code in groups if code]
    return text + "".join(chr(code) for code in escaped if code < 0xD800 or 0xDFFF < code < 0x110000)


def _name(constraint: Constraint) -> str:
    if isinstance(constraint, Choice):
        return f"a choice of {len(constraint.options)}"
    kind, text = ("the pattern" if isinstance(constraint, Regex) else "the JSON schema"), _text(constraint)
    return f"{kind} {text if len(text) <= 80 else text[:80] + '...'}"


def _reason(message: str) -> str:
    """What a message of llguidance says, without places in a grammar that the user never sees.

    >>> _reason('at 1(8): invalid regex "(a" (in regex): regex parse error:\\n  (a\\n  ^\\nerror: unclosed group\\n')
    'unclosed group'
    """
    lines = message.splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[0] if told else re.sub(r"^at \d+\(\d+\): ", "", lines[0])
