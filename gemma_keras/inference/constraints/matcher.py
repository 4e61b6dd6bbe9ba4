"""One answer under a constraint, token by token, and how it comes to its end.

llguidance tells which tokens may come next. That alone does not bring an answer to its end: `(ab)*c` may go on for
ever. So a matcher always knows an end of its text that fits into the tokens that are left. A token after which no such
end is found is not taken; the next token of the known end is taken in its place. By induction every answer is a whole
match, after `max_new_tokens` tokens at the latest.

Axes: V vocabulary, W = ceil(V / 32) words of 32 bits; bit t % 32 of word t // 32 stands for token t.
"""

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from gemma_keras.inference.constraints.endings import DEEP, QUICK, Ends

_ROOM = 16  # tokens, besides twice the known end, that make it worth while to search long
_NEAR = 4  # bytes at the start of a known end that a token may have made superfluous


class Matcher:
    """One answer under way; made by `Grammars.matcher`.

    Attributes:
        finished: a stop id was taken, or nothing but one may follow.
        reader: llguidance's matcher, which has read the answer so far.
        broken: `reader` gave up at one of its limits; the known end is followed from here.
    """

    def __init__(self, ends: Ends, stop_ids: tuple[int, ...], max_new_tokens: int):
        self._ends, self._stop_ids, self._left = ends, stop_ids, max_new_tokens
        self._closing = ends.first(max_new_tokens)
        self._text = b""
        self.reader: LLMatcher = ends.start.deep_copy()
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
            if not bits.flags.c_contiguous or bits.dtype.itemsize != 4:
                # llguidance does not look at what lies where it writes.
                raise ValueError(f"masks are contiguous 32-bit integers, not {bits.dtype} with strides {bits.strides}")
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
        stops, pieces = self._stop_ids, self._ends.pieces
        may_stop = not self._closing.text if self.broken else self.reader.is_accepting()
        if not (may_stop if token in stops else pieces.is_text(token)):
            raise ValueError(f"token {token} was given, which may not come next")
        if token not in stops and not self._goes_on(token):
            token = self._known()[0]
            if token not in stops:
                self._closing = self._closing.after(len(pieces.pieces[token]))
                self.broken = self.broken or not self.reader.consume_token(token)
        if token in stops:
            self.finished = True
            return token
        self._text += pieces.pieces[token]
        self._left -= 1
        self.broken = self.broken or self.reader.is_error()
        self.finished = not self._left or (not self._closing.text if self.broken else self.reader.is_stopped())
        return token

    def _known(self) -> Sequence[int]:
        """The next token of the known end, or the stop ids."""
        return self._closing.tokens[:1] if self._closing.text and not self.finished else self._stop_ids

    def _goes_on(self, token: int) -> bool:
        """Takes `token` if an end is known after it that fits; else nothing is changed."""
        may_come = not self.broken and self.reader.validate_tokens([token]) == 1
        self.broken = self.broken or self.reader.is_error()
        if not may_come and not self.broken:
            raise ValueError(f"token {token} was given, which may not come next")
        if self.broken or not self.reader.consume_token(token):
            self.broken = True
            return False
        left, piece = self._left - 1, self._ends.pieces.pieces[token]
        hints = [self._closing.after(offset) for offset in self._offsets(piece)]
        # Where there is little room, that no end is found is no surprise.
        efforts = (QUICK, DEEP) if left > 2 * self._closing.size + _ROOM else (QUICK,)
        closing = self._ends.after(self.reader, self._text + piece, hints, left, efforts)
        if closing is not None and not self.reader.is_error():
            self._closing = closing
            return True
        self.broken = not self.reader.rollback(1)
        return False

    def _offsets(self, piece: bytes) -> list[int]:
        """Bytes of the known end that may be superfluous after `piece`, the likeliest first."""
        text = self._closing.text
        # Mostly the token belongs to the end, or the same end fits again: in a string, a number or a repetition.
        whole = [len(piece)] if text.startswith(piece) else [0]
        overlaps = [size for size in range(min(len(piece), len(text)), 0, -1) if piece.endswith(text[:size])]
        near = range(min(_NEAR, len(text)))
        return [offset for offset in dict.fromkeys([*whole, *overlaps, len(piece), *near]) if offset <= len(text)]
