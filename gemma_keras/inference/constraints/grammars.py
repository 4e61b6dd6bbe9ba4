"""Answers that match a choice of texts, a regular expression or a JSON schema, whatever the model would say.

llguidance tells which tokens may come next; matcher.py brings every answer to its end.

Axes: V vocabulary, W = ceil(V / 32) words of 32 bits; bit t % 32 of word t // 32 stands for token t.
"""

import functools
from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Constraint, compiled
from gemma_keras.inference.constraints.endings import Ends
from gemma_keras.inference.constraints.matcher import Matcher
from gemma_keras.inference.constraints.pieces import Pieces
from gemma_keras.text.tokenizer import Tokenizer

_COMPILED = 256  # constraints that are kept compiled
_PREFIXES = 1024  # matchers that are kept for `allowed` and `taken`


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
        self.ends = functools.lru_cache(maxsize=_COMPILED)(self._ends)
        self._by_prefix: dict[tuple, Matcher] = {}

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> Matcher:
        """A matcher of one answer of at most `max_new_tokens` tokens, a stop id not counted.

        Raises:
            UserError: a pattern or schema that cannot be used, no options, or no answer that is short enough.
        """
        return Matcher(self.ends(constraint), self.stop_ids, max_new_tokens)

    def _ends(self, constraint: Constraint) -> Ends:
        return Ends(constraint, compiled(constraint, self._tokenizer), self.pieces, self.stop_ids[0])

    def after(self, constraint: Constraint, max_new_tokens: int, tokens: Sequence[int]) -> Matcher:
        """A matcher that has taken `tokens`, made from that of the longest beginning that is kept; read only.

        What follows the answer's end is not looked at.

        Raises:
            UserError: as `matcher`.
            ValueError: a token that is not allowed, or that would not have been `taken`.
        """
        path = tuple(map(int, tokens))
        beginnings = ((constraint, max_new_tokens, path[:end]) for end in range(len(path), -1, -1))
        *_, known = next((key for key in beginnings if key in self._by_prefix), ((),))
        matcher = self._by_prefix.get((constraint, max_new_tokens, known)) or self.matcher(constraint, max_new_tokens)
        for end, token in enumerate(path[len(known) :], len(known) + 1):
            if matcher.finished:
                break
            matcher = matcher.copy()
            if matcher.accept(token) != token:
                raise ValueError(f"token {token} leaves too little room for the answer's end")
            self.keep(constraint, max_new_tokens, path[:end], matcher)
        return matcher

    def keep(self, constraint: Constraint, max_new_tokens: int, tokens: tuple[int, ...], matcher: Matcher) -> None:
        """Keeps a matcher for `after`, which must not be changed from here on."""
        self._by_prefix[constraint, max_new_tokens, tokens] = matcher
        if len(self._by_prefix) > _PREFIXES:
            del self._by_prefix[next(iter(self._by_prefix))]


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
