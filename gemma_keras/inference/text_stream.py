"""Text of an answer while its tokens arrive: whole characters only, and nothing of a stop string.

The pieces of text add up to what `Tokenizer.decode` makes of all tokens. A character that is spelled in byte pieces
waits for its last byte, and text that may turn out to begin a stop string waits until it is clear that it does not.
Stop strings are found by the automaton of Aho and Corasick (1975), so their number does not slow a stream down.
"""

import codecs
import collections
from collections.abc import Iterable

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer

_REPLACE_EACH_BYTE = "gemma_keras.replace_each_byte"
_CODE_POINTS = 0x110000
_ROOT = 0


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # As SentencePiece does; Python's "replace" writes one U+FFFD for all bytes of a character that is cut off.
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error(_REPLACE_EACH_BYTE, _replace_each_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class StopStrings:
    """Strings of which each ends an answer, compiled once for many streams.

    The first one that is complete counts; of several that end at the same character, the longest.

    Raises:
        UserError: an empty string.
    """

    def __init__(self, strings: Iterable[str]):
        self.strings = tuple(dict.fromkeys(strings))
        if not all(self.strings):
            raise UserError("an empty stop string was given, which would end every answer at once; remove it.")
        # States are beginnings of strings; (state, character) -> state, both in one integer.
        self._next: dict[int, int] = {}
        self._depth = [0]
        self._longest_end = [0]
        self._fail = [_ROOT]
        self._link(self._build_trie())

    def _build_trie(self) -> list[tuple[int, int, int]]:
        """(state, its parent, the character between) of each state but the root, shorter beginnings first."""
        edges = []
        for string in self.strings:
            state = _ROOT
            for character in map(ord, string):
                key = state * _CODE_POINTS + character
                if key not in self._next:
                    self._next[key] = len(self._depth)
                    edges.append((self._next[key], state, character))
                    self._depth.append(self._depth[state] + 1)
                    self._longest_end.append(0)
                    self._fail.append(_ROOT)
                state = self._next[key]
            self._longest_end[state] = len(string)
        return sorted(edges, key=lambda edge: self._depth[edge[0]])

    def _link(self, edges: list[tuple[int, int, int]]) -> None:
        """Points each state to the longest of its endings that begins a string too."""
        for state, parent, character in edges:
            if parent != _ROOT:
                self._fail[state] = self.step(self._fail[parent], character)
            self._longest_end[state] = self._longest_end[state] or self._longest_end[self._fail[state]]

    def step(self, state: int, character: int) -> int:
        """The state after one more character (a code point); it starts at 0."""
        while True:
            following = self._next.get(state * _CODE_POINTS + character)
            if following is not None:
                return following
            if state == _ROOT:
                return _ROOT
            state = self._fail[state]

    def held(self, state: int) -> int:
        """How many of the last characters may begin a stop string."""
        return self._depth[state]

    def ended(self, state: int) -> int:
        """The length of the longest stop string that the last characters spell; 0 if they spell none."""
        return self._longest_end[state]


class TextStream:
    """Turns tokens into text as they come.

    Attributes:
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
        self._state = _ROOT
        self._held: collections.deque[str] = collections.deque()
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All text that was returned so far."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

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
        certain = self._scanned(new, last) if self._stops.strings else new
        self._parts.append(certain)
        return certain

    def _scanned(self, new: str, last: bool) -> str:
        stops, held = self._stops, self._held
        for character in new:
            held.append(character)
            self._state = stops.step(self._state, ord(character))
            if stops.ended(self._state):
                self.stopped = True
                for _ in range(stops.ended(self._state)):
                    held.pop()
                break
        keep = 0 if self.stopped or last else stops.held(self._state)
        return "".join(held.popleft() for _ in range(len(held) - keep))
