"""What a sequence gets of a chunk of tokens: text that is certain, log-probabilities, an end."""

import dataclasses
from collections import deque
from collections.abc import Callable

import jax

from gemma_keras.inference.constraints.matcher import Matcher
from gemma_keras.inference.decode import Chunk
from gemma_keras.inference.requests import Delta, FinishedSequence, Request, broken_logits
from gemma_keras.inference.text_stream import TextStream

INTERRUPTED = "the engine was reset by another call before this answer was complete; ask again."
Overruled = tuple[int, int]
"""The token that the device took, and the one in its place."""


@dataclasses.dataclass(eq=False, slots=True)
class ActiveSequence:
    """One sample of a request under way."""

    request: Request
    number: int  # of the request in its call, for messages
    seed: int
    decode: Callable[[list[int]], str] | None = None  # what makes a text of its tokens; None: there is no tokenizer
    matcher: Matcher | None = None
    stream: TextStream | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    completion: FinishedSequence | None = None
    error: Exception | None = None
    unread: deque[Delta] | None = None  # pieces that nobody has taken yet; None: nobody will
    suspect: bool = False  # it was there when a step failed, so it goes on alone

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.completion is not None or self.error is not None

    @property
    def so_far(self) -> tuple[int, ...]:
        """The prompt and the tokens after it."""
        return (*self.request.prompt, *self.tokens)

    @property
    def positions(self) -> int:
        """Slots that its row needs."""
        return len(self.request.prompt) + self.request.sampling.max_new_tokens

    def add_piece(self, tokens: list[int], text: str) -> None:
        """Keeps a piece of the answer for whoever takes them, the last one with the completion."""
        if self.unread is not None:
            self.unread.append(Delta(tokens, text, self.completion))

    def end(self, reason: str) -> str:
        """Completes the sequence; returns the text that no piece had: what its stream held back, or without one all."""
        rest, text = "", None
        if self.stream is not None:
            rest = self.stream.finish()
            text = self.stream.text
        elif self.decode is not None:
            rest = text = self.decode(self.tokens)
        asked = self.request.log_probs
        self.completion = FinishedSequence(
            tokens=self.tokens, reason=reason, text=text, log_probs=None if asked is None else self.log_probs,
            alternatives=self.alternatives if asked else None,
        )  # fmt: skip
        return rest


def deliver(sequence: ActiveSequence, chunk: Chunk, row: int, every: jax.Array | None = None) -> Overruled | None:
    """Adds the tokens that `chunk` has in `row` to a sequence, and ends it where they do; returns what was overruled.

    Args:
        every: f32[B, V], the log-probabilities of all tokens, where one may be overruled.
    """
    made = [int(token) for token in chunk.tokens[row] if token >= 0]
    tokens, stopped, overruled = _constrained(sequence, made, bool(chunk.stopped[row]))
    tokens, text, ended = _follow(sequence, tokens, stopped)
    _note(sequence, chunk, row, made, tokens, every)
    if chunk.broken[row]:
        sequence.error = broken_logits(sequence.number, len(sequence.tokens))
    elif ended:
        text += sequence.end(ended)
    sequence.add_piece(tokens, text)
    return overruled


def _constrained(sequence: ActiveSequence, made: list[int], stopped: bool) -> tuple[list[int], bool, Overruled | None]:
    """The tokens that the constraint takes, whether the answer stops, and what was overruled."""
    if sequence.matcher is None or not made:
        return made, stopped, None
    taken = sequence.matcher.accept(made[0])
    overruled = None if taken == made[0] else (made[0], taken)
    if taken in sequence.request.stop_ids:
        return [], True, overruled
    return [taken, *made[1:]], stopped or sequence.matcher.finished, overruled


def _follow(sequence: ActiveSequence, tokens: list[int], stopped: bool) -> tuple[list[int], str, str]:
    """Adds new tokens; those that count, the text that is certain, and why the sequence ended, if it did."""
    text = ""
    if sequence.stream is not None:
        for count, token in enumerate(tokens, 1):
            text += sequence.stream.push([token])
            if sequence.stream.stopped:
                sequence.tokens += tokens[:count]
                return tokens[:count], text, "stop_string"
    sequence.tokens += tokens
    if stopped:
        return tokens, text, "stop"
    if len(sequence.tokens) < sequence.request.sampling.max_new_tokens:
        return tokens, text, ""
    # What is constrained is whole at its limit, too.
    return tokens, text, "length" if sequence.matcher is None else "stop"


def _note(
    sequence: ActiveSequence, chunk: Chunk, row: int, made: list[int], tokens: list[int], every: jax.Array | None
) -> None:
    """Keeps the log-probabilities of `tokens`, of which the first may have taken the place of the one that was `made`."""
    asked, count = sequence.request.log_probs, len(tokens)
    if asked is not None and chunk.log_probs is not None:
        sequence.log_probs += chunk.log_probs[row, :count].tolist()
        if every is not None and tokens and tokens[0] != made[0]:
            sequence.log_probs[-1] = float(every[row, tokens[0]])
    if asked and chunk.top_ids is not None and chunk.top_log_probs is not None:
        ids, values = chunk.top_ids[row, :count, :asked], chunk.top_log_probs[row, :count, :asked]
        sequence.alternatives += [
            list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)
        ]
