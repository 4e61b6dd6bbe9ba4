"""Batched generation: the prompts go through the model once, then one token a step with a key-value cache.

The whole of it is one compiled function, whose loop ends when every row has stopped. Shapes are rounded up to a few
sizes and all settings are traced, so that few programs are compiled; JAX keeps them between calls.

Slots of the cache, for prompts of 5 and 3 tokens (p) in a block of 8; `.` is empty, P a prompt's last token:

    row 0    p p p p . . . .   P n n n ...
    row 1    p p . . . . . .   P n n n ...

A prompt's last token is the input of the first step, so that logits are computed at one place only. Each row keeps its
own positions (row 1: 0, 1, then 2 for P, 3, ...); attention goes by positions and segments, not by slots.

Axes: B rows, T prompt block, M new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import GemmaBackbone

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SamplingConfig
from gemma_keras.inference.sampling import Sampling, next_tokens, row_keys
from gemma_keras.models.forward import Cache, Params, forward, init_cache, logits

TEXT_SEGMENT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """New tokens of one prompt, without the stop token; `stopped` is False where `max_new_tokens` ended the answer."""

    tokens: list[int]
    stopped: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """Generates with a backbone and its params, adapters in place or merged.

    Compiled programs belong to the backbone: generators of the same one share them, whatever their params. At most
    `batch_rows` prompts are run together.
    """

    backbone: GemmaBackbone
    params: Params
    batch_rows: int = 32

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stop_ids: Sequence[int]
    ) -> list[Generated]:
        """Continues each prompt (token ids, bos included) until one of `stop_ids` or `sampling.max_new_tokens`.

        The draws of prompt i depend on `sampling.seed` and i only, not on what the other prompts are. The repetition
        penalty counts the tokens of the prompt too.

        Raises:
            UserError: an empty or overlong prompt, an id outside the vocabulary, an impossible sampling value, or
                logits that are not finite.
        """
        values = Sampling.of(sampling)
        self._check_prompts(prompts, sampling.max_new_tokens)
        is_stop = self._stop_mask(stop_ids)
        # Prompts of like lengths share a batch; their random keys follow their places in `prompts`.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        results: dict[int, Generated] = {}
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            results |= self._generate_batch({row: prompts[row] for row in rows}, sampling, values, is_stop)
        return [results[row] for row in range(len(prompts))]

    def _generate_batch(
        self, prompts: dict[int, Sequence[int]], sampling: SamplingConfig, values: Sampling, is_stop: np.ndarray
    ) -> dict[int, Generated]:
        """Results by row number of one batch."""
        tokens, lengths = _padded(list(prompts.values()), min_rows=min(self.batch_rows, _power_of_two(len(prompts))))
        rows = np.zeros(len(tokens), np.int32)
        rows[: len(prompts)] = list(prompts)
        answers = _run(
            self.params, tokens, lengths, rows, is_stop, values, np.uint32(sampling.seed & 0xFFFFFFFF),
            np.int32(sampling.max_new_tokens), backbone=self.backbone, new_slots=bucket(sampling.max_new_tokens),
        )  # fmt: skip
        new, counts, stopped, finite = map(np.asarray, answers)
        results = {}
        for index, row in enumerate(prompts):
            if not finite[index]:
                raise UserError(
                    f"the model's logits for prompt {row} are not finite after {counts[index]} new tokens: its weights"
                    " are broken or too large for their dtype; check the checkpoint or use float32."
                )
            results[row] = Generated(new[index, : counts[index]].tolist(), bool(stopped[index]))
        return results

    def _check_prompts(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        vocabulary, most = self.backbone.architecture.vocabulary_size, self.backbone.architecture.max_position
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise UserError(f"prompt {row} is empty; give at least one token, such as bos.")
            wrong = [token for token in prompt if not 0 <= token < vocabulary]
            if wrong:
                raise UserError(
                    f"prompt {row} has the token id {wrong[0]}, the model knows 0 to {vocabulary - 1}; "
                    "use the tokenizer that belongs to the weights."
                )
            if len(prompt) + new_tokens > most:
                raise UserError(
                    f"prompt {row} has {len(prompt)} tokens, which with {new_tokens} new ones exceeds the model's"
                    f" {most} positions; shorten it or lower sampling.max_new_tokens."
                )

    def _stop_mask(self, stop_ids: Sequence[int]) -> np.ndarray:
        """bool[V]: which tokens end an answer."""
        vocabulary = self.backbone.architecture.vocabulary_size
        wrong = [token for token in stop_ids if not 0 <= token < vocabulary]
        if wrong:
            raise UserError(f"the stop id {wrong[0]} is not in the model's vocabulary, 0 to {vocabulary - 1}.")
        mask = np.zeros(vocabulary, bool)
        mask[list(stop_ids)] = True
        return mask


def bucket(length: int) -> int:
    """The size a length is rounded up to: a power of two from 32 to 512, then a multiple of 256.

    >>> [bucket(length) for length in (1, 33, 512, 513, 800)]
    [32, 64, 512, 768, 1024]
    """
    return max(32, _power_of_two(length)) if length <= 512 else -(-length // 256) * 256


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _padded(prompts: list[Sequence[int]], min_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the right to i32[B, T], and their lengths i32[B]; rows that are added have length 0."""
    tokens = np.zeros((max(min_rows, len(prompts)), bucket(max(map(len, prompts)))), np.int32)
    lengths = np.zeros(len(tokens), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


class _State(NamedTuple):
    """What the loop carries. `last` i32[B] is the token that goes in next, at `position` i32[B]; `new` i32[B, M]."""

    step: jax.Array
    cache: Cache
    last: jax.Array
    position: jax.Array
    seen: jax.Array
    new: jax.Array
    count: jax.Array
    stopped: jax.Array
    finite: jax.Array
    running: jax.Array


@functools.partial(jax.jit, static_argnames=("backbone", "new_slots"))
def _run(
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    rows: jax.Array,
    is_stop: jax.Array,
    sampling: Sampling,
    seed: jax.Array,
    limit: jax.Array,
    *,
    backbone: GemmaBackbone,
    new_slots: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """New tokens i32[B, M], their counts, whether a stop token came, and whether all logits were finite, each [B].

    `tokens` i32[B, T], `lengths` i32[B] (0: not a row at all), `rows` i32[B]: numbers for the random keys.
    """
    keys = row_keys(seed, rows)
    each_row = jnp.arange(len(tokens))

    def advance(state: _State) -> _State:
        segment = jnp.full_like(state.last, TEXT_SEGMENT)
        hidden, cache = forward(
            backbone, params, state.last[:, None], state.position[:, None], segment[:, None], cache=state.cache
        )
        values = logits(backbone, params, hidden[:, 0])
        token = next_tokens(values, state.seen, sampling, keys, state.step)
        finite = jnp.isfinite(values).all(axis=-1)
        stop = state.running & finite & is_stop[token]
        running = state.running & finite & ~stop
        return _State(
            step=state.step + 1,
            cache=cache,
            last=token,
            position=state.position + 1,
            seen=state.seen.at[each_row, token].set(True),
            new=state.new.at[:, state.step].set(jnp.where(running, token, 0)),
            count=state.count + running,
            stopped=state.stopped | stop,
            finite=state.finite & (finite | ~state.running),
            running=running,
        )

    def unfinished(state: _State) -> jax.Array:
        return (state.step < limit) & state.running.any()

    state = jax.lax.while_loop(unfinished, advance, _prefill(backbone, params, tokens, lengths, new_slots))
    return state.new, state.count, state.stopped, state.finite


def _prefill(backbone: GemmaBackbone, params: Params, tokens: jax.Array, lengths: jax.Array, new_slots: int) -> _State:
    """The loop's first state: all prompt tokens but the last of each row are in the cache."""
    batch, block = tokens.shape
    places = jnp.broadcast_to(jnp.arange(block), tokens.shape)
    last = jnp.maximum(lengths - 1, 0)
    segments = jnp.where(places < last[:, None], TEXT_SEGMENT, 0)
    _, cache = forward(backbone, params, tokens, places, segments, cache=init_cache(backbone, batch, block + new_slots))
    vocabulary = backbone.architecture.vocabulary_size
    # Padding is sent beyond the vocabulary, where it marks nothing.
    prompt = jnp.where(places < lengths[:, None], tokens, vocabulary)
    none = jnp.zeros(batch, bool)
    return _State(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        last=jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0],
        position=last,
        seen=jnp.zeros((batch, vocabulary), bool).at[jnp.arange(batch)[:, None], prompt].set(True, mode="drop"),
        new=jnp.zeros((batch, new_slots), jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        stopped=none,
        finite=~none,
        running=lengths > 0,
    )
