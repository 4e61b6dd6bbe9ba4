"""Text of an answer while its tokens arrive: whole characters only, and nothing of a stop string.

The pieces of text add up to what `Tokenizer.decode` makes of all tokens. A character that is spelled in byte pieces
waits for its last byte, and text that may turn out to begin a stop string waits until it is clear that it does not.
Stop strings and their beginnings are looked up in sets, so their number hardly slows a stream down.
"""

import codecs
from collections.abc import Iterable

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer

_REPLACE_EACH_BYTE = "gemma_keras.replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # As SentencePiece does; Python's "replace" writes one U+FFFD for all bytes of a character that is cut off.
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error(_REPLACE_EACH_BYTE, _replace_each_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class StopStrings:
    """Strings of which each ends an answer, made ready once for many streams.

    The first one that is complete counts; of several that end at the same character, the longest.

    Raises:
        UserError: an empty string.
    """

    def __init__(self, strings: Iterable[str]):
        self.strings = frozenset(strings)
        if not all(self.strings):
            raise UserError("an empty stop string was given, which would end every answer at once; remove it.")
        self._beginnings = {text[:size] for text in self.strings for size in range(1, len(text) + 1)}
        self._sizes = sorted(set(map(len, self.strings)), reverse=True)

    def begun(self, text: str) -> str:
        """The longest end of `text` that begins a stop string."""
        ends = (text[start:] for start in range(len(text)))
        return next((end for end in ends if end in self._beginnings), "")

    def ended(self, text: str) -> str:
        """The longest stop string that `text` ends with, or nothing."""
        return next((end for size in self._sizes if (end := text[-size:]) in self.strings), "")


class TextStream:
    """Turns tokens into text as they come.

    Attributes:
        text: all that was returned so far.
        stopped: a stop string came; the text ends before it.

    Args:
        tokenizer: whose ids the tokens are.
        stop_strings: what ends the text; compile many strings once as `StopStrings`.

    Raises:
        UserError: an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: StopStrings | Iterable[str] = ()):
        self._tokenizer = tokenizer
        self._stops = stop_strings if isinstance(stop_strings, StopStrings) else StopStrings(stop_strings)
        self._bytes = _Utf8Decoder(_REPLACE_EACH_BYTE)
        self._held = ""  # what may turn out to begin a stop string
        self.text = ""
        self.stopped = False

    def push(self, tokens: Iterable[int]) -> str:
        """The text that is certain now and was not before; nothing once a stop string came."""
        return "" if self.stopped else self._release("".join(map(self._decoded, map(int, tokens))))

    def finish(self) -> str:
        """The rest of the text. Bytes that are no character become U+FFFD each."""
        return "" if self.stopped else self._release(self._bytes.decode(b"", final=True), last=True)

    def _decoded(self, token: int) -> str:
        """The characters that `token` completes."""
        tokenizer = self._tokenizer
        if token not in tokenizer.control_ids and tokenizer.is_byte(token):
            return self._bytes.decode(tokenizer.piece_bytes(token))
        cut_off = self._bytes.decode(b"", final=True)
        return cut_off if token in tokenizer.control_ids else cut_off + tokenizer.piece_bytes(token).decode()

    def _release(self, new: str, last: bool = False) -> str:
        """Adds `new` to the text that is held, and returns what of it can no longer belong to a stop string."""
        certain = self._scanned(new) if self._stops.strings else new
        if last and not self.stopped:
            certain, self._held = certain + self._held, ""
        self.text += certain
        return certain

    def _scanned(self, new: str) -> str:
        certain = ""
        for character in new:
            longer = self._held + character
            if stop := self._stops.ended(longer):
                self.stopped = True
                return certain + longer.removesuffix(stop)
            self._held = self._stops.begun(longer)
            certain += longer.removesuffix(self._held)
        return certain
