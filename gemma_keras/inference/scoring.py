"""Log-probabilities of given tokens: of continuations of a prompt, which is read once, and of the prompt itself.

Axes: P rows at work, T tokens of a piece, X all of them (P · T), C tokens scored at a time, V vocabulary, n likely tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.inference.buckets import bucket, power_of_two, slot_bucket
from gemma_keras.inference.decode_state import DecodeState, copied, empty_state, placed
from gemma_keras.inference.prefill import PREFILL_TOKENS, Prompt, PromptReader, divided_rows, earlier_slots, group_size
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.requests import Score, ScoredTokens, ScoreRequest, broken_logits
from gemma_keras.models.forward import Params, forward, logits, only_pieces
from gemma_keras.models.kv_cache import Context
from gemma_keras.parallel.plan import ComputePlan

SCORED_AT_ONCE = 64  # tokens whose logits are there at the same time


@dataclasses.dataclass(eq=False, slots=True)
class ActiveScore:
    """A request for scores under way."""

    request: ScoreRequest
    number: int  # of the request in its call, for messages
    score: Score | None = None
    error: Exception | None = None
    suspect: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.score is not None or self.error is not None


class Scores(NamedTuple):
    """Of each token f32[P, T] its log-probability and bool[P, T] whether it is a likeliest one; the likeliest tokens and
    their log-probabilities, i32[P, T, n] and f32[P, T, n]."""

    log_probs: jax.Array
    greedy: jax.Array
    top_ids: jax.Array
    top_log_probs: jax.Array


@dataclasses.dataclass(eq=False, slots=True)
class _Reading:
    """Tokens to be scored: `tokens[1:]`, each after what is in `row` up to `start` and the tokens before it."""

    tokens: tuple[int, ...]
    row: int
    start: int
    read: int = 0
    found: ScoredTokens = dataclasses.field(default_factory=lambda: ScoredTokens([], [], []))

    @property
    def left(self) -> int:
        """Tokens that are still to be scored."""
        return len(self.tokens) - 1 - self.read


class Scorer:
    """Answers groups of requests for scores, as `GroupRunner` wants it."""

    def __init__(self, backbone: Backbone, plan: ComputePlan, cache_dtype: str):
        self._backbone, self._plan, self._cache_dtype = backbone, plan, cache_dtype
        self._reader = PromptReader(backbone, plan)

    def __call__(
        self, params: Params, prefixes: PrefixCache | None, members: Sequence[Sequence[ActiveScore]]
    ) -> Iterator[None]:
        """Scores a group, and yields after each piece that was read."""
        requests = [active.request for (active,) in members]
        rows: dict[tuple[int, ...], int] = {}
        for request in requests:
            rows.setdefault(tuple(request.prompt), len(rows))
        whole = {
            tuple(r.prompt): _Reading(tuple(r.prompt), rows[tuple(r.prompt)], 0) for r in requests if r.prompt_log_probs
        }
        after = [[_reading(r.prompt, tokens, rows[tuple(r.prompt)]) for tokens in r.continuations] for r in requests]
        # What does not fit into one piece goes on in a row of its own.
        long = [reading for readings in after for reading in readings if reading.left > PREFILL_TOKENS]
        moved = [(reading.row, len(rows) + number) for number, reading in enumerate(long)]
        for reading, (_, row) in zip(long, moved, strict=True):
            reading.row = row
        alternatives = max(request.alternatives for request in requests)
        state, slots = self._empty(rows, long)
        read_first = [Prompt(p, row, 0) for p, row in rows.items() if p not in whole]
        state = self._reader.read(params, state, read_first, prefixes, slots)
        yield
        runs = functools.partial(self._runs, params, slots, alternatives)
        state = yield from runs(state, list(whole.values()), keep=True)
        state = copied(state, moved, self._plan)
        state = yield from runs(state, long, keep=True)
        short = [reading for readings in after for reading in readings if reading not in long]
        yield from runs(state, short, keep=False)
        for (active,), readings in zip(members, after, strict=True):
            _complete(active, whole.get(tuple(active.request.prompt)), readings)

    def _empty(self, rows: dict[tuple[int, ...], int], long: Sequence[_Reading]) -> tuple[DecodeState, int]:
        size = divided_rows(power_of_two, len(rows) + len(long), self._plan)
        slots = slot_bucket(max([*map(len, rows), *(reading.start + len(reading.tokens) for reading in long)]))
        return empty_state(self._backbone, self._plan, size, slots, 0, self._cache_dtype), slots

    def _runs(
        self,
        params: Params,
        slots: int,
        alternatives: int,
        state: DecodeState,
        readings: Sequence[_Reading],
        *,
        keep: bool,
    ) -> Generator[None, None, DecodeState]:
        """Scores piece after piece, of several readings together; returns the state after them."""
        work = list(readings)
        while work := sorted((reading for reading in work if reading.left > 0), key=lambda r: r.left, reverse=True):
            group = work[: group_size(work[0].left, len(work), self._plan)]
            counts = [min(reading.left, PREFILL_TOKENS) for reading in group]
            size = divided_rows(power_of_two, len(group), self._plan)
            tokens, targets = np.zeros((2, size, bucket(max(counts))), np.int32)
            start, count = np.zeros((2, size), np.int32)
            at = np.full(size, state.size, np.int32)
            for index, (reading, new) in enumerate(zip(group, counts, strict=True)):
                tokens[index, :new] = reading.tokens[reading.read : reading.read + new]
                targets[index, :new] = reading.tokens[reading.read + 1 : reading.read + new + 1]
                at[index], start[index], count[index] = reading.row, reading.start + reading.read, new
            state, scores = score_piece(
                params, state, tokens, targets, start, count, at, backbone=self._backbone, plan=self._plan,
                prefix=earlier_slots(start, slots), alternatives=alternatives, keep=keep,
            )  # fmt: skip
            scores = jax.device_get(scores)
            for index, (reading, new) in enumerate(zip(group, counts, strict=True)):
                _note(reading, scores, index, new)
            yield
        return state


@functools.partial(
    jax.jit, static_argnames=("backbone", "plan", "prefix", "alternatives", "keep"), donate_argnames="state"
)
def score_piece(
    params: Params,
    state: DecodeState,
    tokens: jax.Array,
    targets: jax.Array,
    start: jax.Array,
    count: jax.Array,
    at: jax.Array,
    *,
    backbone: Backbone,
    plan: ComputePlan,
    prefix: int,
    alternatives: int,
    keep: bool,
) -> tuple[DecodeState, Scores]:
    """Scores of `targets` i32[P, T] after `tokens` i32[P, T], of which the first `count` i32[P] count.

    They stand at positions `start` i32[P] and after of the rows `at` i32[P], whose slot offset is 0 and which take them if
    `keep`; several may go on after the same row if not. `prefix`: as for `prefill`.
    """
    places = jnp.arange(tokens.shape[1])
    positions = jnp.where(places < count[:, None], start[:, None] + places, -1)
    earlier = state.cache.take(at, prefix) if prefix else None
    hidden, new = forward(backbone, params, tokens, positions, context=Context(length=start, cache=earlier), plan=plan)

    def scores_of(chunk: tuple[jax.Array, jax.Array]) -> Scores:
        hidden, targets = chunk
        log_probs = only_pieces(backbone.architecture, jax.nn.log_softmax(logits(backbone, params, hidden), axis=-1))
        own = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
        values, ids = (
            jax.lax.top_k(log_probs, alternatives) if alternatives else (log_probs[:, :0], targets[:, None][:, :0])
        )
        return Scores(own, own >= log_probs.max(axis=-1), ids, values)

    chunk = math.gcd(tokens.size, SCORED_AT_ONCE)
    chunks = (hidden.reshape(-1, chunk, hidden.shape[-1]), targets.reshape(-1, chunk))
    scores = jax.tree.map(lambda x: x.reshape(*tokens.shape, *x.shape[2:]), jax.lax.map(scores_of, chunks))
    if keep:
        state = placed(state._replace(cache=state.cache.write(new, start, count, at)), plan)
    return state, scores


def _reading(prompt: Sequence[int], continuation: Sequence[int], row: int) -> _Reading:
    """A continuation, which goes on after all but the last token of the prompt."""
    return _Reading((prompt[-1], *continuation), row, len(prompt) - 1)


def _note(reading: _Reading, scores: Scores, row: int, count: int) -> None:
    found = reading.found
    found.log_probs.extend(scores.log_probs[row, :count].tolist())
    found.greedy.extend(scores.greedy[row, :count].tolist())
    ids, values = scores.top_ids[row, :count].tolist(), scores.top_log_probs[row, :count].tolist()
    found.alternatives.extend([list(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)])
    reading.read += count


def _complete(active: ActiveScore, prompt: _Reading | None, continuations: Sequence[_Reading]) -> None:
    request = active.request
    own = [*continuations, *([prompt] if prompt is not None and request.prompt_log_probs else [])]
    if not all(map(math.isfinite, (value for reading in own for value in reading.found.log_probs))):
        active.error = broken_logits(active.number, 0)
        return
    found = [reading.found.with_most(request.alternatives) for reading in own]
    several = len(continuations)
    active.score = Score(continuations=found[:several], prompt=found[several] if len(found) > several else None)
