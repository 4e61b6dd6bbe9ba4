"""What sequences that decode side by side share on the device, and the programs that change it: rows that come and go.

A `DecodeState` holds B sequences, each at its own length, with settings of its own. Its clock counts its steps: a step writes
slot `clock` mod S of every row, and the row's slot offset says which position that is.

    clock 5    p p p p p n . . .    slot offset 0, length 5: the next token is at position 5
               . . . p p n . . .    slot offset 3, length 2: the next token is at position 2

A prompt's last token is the input of the first step, so that logits are computed at one place only.

Axes: B rows of a state, P rows at work, S slots, V vocabulary, n entries of a list.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras_hub.models import Backbone

from gemma_keras.inference.buckets import power_of_two
from gemma_keras.inference.sampling import NEUTRAL, SamplingRows, Tallies
from gemma_keras.models.kv_cache import (
    KVCache,
    Stored,
    cache_sharding,
    held_positions,
    in_positions,
    init_cache,
)
from gemma_keras.parallel.plan import ComputePlan


class Rows(NamedTuple):
    """What a row is told, and how far it is; an entry [B, ...] a row.

    `length` i32 tokens in the cache, in slots that `slot_offset` i32 tells; `last` i32 the token that goes in next; `step` and
    `limit` i32 new tokens so far and at most; `running` bool; `stops` bool[B, V] which tokens end it; `bias_ids` i32[B, n] and
    `bias_values` f32[B, n].
    """

    length: jax.Array
    slot_offset: jax.Array
    last: jax.Array
    step: jax.Array
    limit: jax.Array
    running: jax.Array
    tallies: Tallies
    stops: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    sampling: SamplingRows


class DecodeState(NamedTuple):
    """B sequences under way; `clock` i32: steps so far. For each row, length + slot_offset equals it mod S."""

    rows: Rows
    cache: KVCache
    clock: jax.Array

    @property
    def size(self) -> int:
        """B."""
        return len(self.rows.last)


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "rows", "slots", "biases", "cache_dtype"))
def empty_state(
    backbone: Backbone, plan: ComputePlan, rows: int, slots: int, biases: int, cache_dtype: str
) -> DecodeState:
    """A state without sequences."""
    architecture, vocabulary = backbone.architecture, backbone.architecture.vocabulary_size
    dtype = backbone.token_embedding.compute_dtype
    number, flags = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, vocabulary), bool)
    values = Rows(
        length=number, slot_offset=number, last=number, step=number, limit=number, running=jnp.zeros(rows, bool),
        tallies=Tallies(flags, jnp.zeros((rows, vocabulary), jnp.int32)), stops=flags,
        bias_ids=jnp.zeros((rows, biases), jnp.int32), bias_values=jnp.zeros((rows, biases), jnp.float32),
        sampling=jax.tree.map(jnp.asarray, SamplingRows.of([NEUTRAL] * rows)),
    )  # fmt: skip
    cache = init_cache(architecture, rows, slots, dtype if cache_dtype == "auto" else cache_dtype, plan)
    return placed(DecodeState(values, cache, jnp.zeros((), jnp.int32)), plan)


def state_shardings(state: DecodeState, mesh: Mesh) -> DecodeState:
    """Where each array of a state lies: rows over "data", heads over "model", where they divide."""
    rows = jax.tree.map(lambda x: cache_sharding(mesh, x.shape[:1]), state.rows)
    cache = jax.tree.map(lambda x: cache_sharding(mesh, x.shape), state.cache)
    return DecodeState(rows, cache, NamedSharding(mesh, PartitionSpec()))


def placed(state: DecodeState, plan: ComputePlan) -> DecodeState:
    """Every array where `empty_state` put it, so that no program meets a placement that it was not compiled for."""
    return state if plan.mesh is None else jax.lax.with_sharding_constraint(state, state_shardings(state, plan.mesh))


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def admit(state: DecodeState, at: jax.Array, rows: Rows, *, plan: ComputePlan) -> DecodeState:
    """Gives the rows `at` i32[P] of a state the values `rows` [P, ...]; those beyond the state are left out."""
    values = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), state.rows, rows)
    return placed(state._replace(rows=values), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def copy_rows(state: DecodeState, source: jax.Array, to: jax.Array, *, plan: ComputePlan) -> DecodeState:
    """Copies the cache of the rows `source` i32[P] to the rows `to` i32[P]; those beyond the state are left out."""
    cache = jax.tree.map(lambda x: x.at[to].set(x[source], mode="drop"), state.cache)
    return placed(state._replace(cache=cache), plan)


def copied(state: DecodeState, moved: Sequence[tuple[int, int]], plan: ComputePlan) -> DecodeState:
    """The state with the cache of the first row of each pair in the second one, too."""
    moved = [(source, to) for source, to in moved if source != to]
    if not moved:
        return state
    padding = [(0, state.size)] * (power_of_two(len(moved)) - len(moved))
    source, to = np.array(moved + padding, np.int32).T
    return copy_rows(state, source, to, plan=plan)


def row_numbers(rows: Sequence[int], state: DecodeState) -> np.ndarray:
    """Numbers of rows i32[P], filled up with rows that the state does not have."""
    at = np.full(power_of_two(len(rows)), state.size, np.int32)
    at[: len(rows)] = rows
    return at


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def release(state: DecodeState, at: jax.Array, *, plan: ComputePlan) -> DecodeState:
    """Ends the rows `at` i32[P]; those beyond the state are left out."""
    running = state.rows.running.at[at].set(False, mode="drop")
    return placed(state._replace(rows=state.rows._replace(running=running)), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def overrule(
    state: DecodeState, at: jax.Array, taken: jax.Array, instead: jax.Array, *, plan: ComputePlan
) -> DecodeState:
    """Puts the token `instead` into the place of the newest one, `taken`, of row `at`; all i32 scalars."""
    rows = state.rows
    counts = rows.tallies.counts.at[at, taken].add(-1).at[at, instead].add(1)
    rows = rows._replace(last=rows.last.at[at].set(instead), tallies=rows.tallies._replace(counts=counts))
    return placed(state._replace(rows=rows), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def erase(state: DecodeState, at: jax.Array, *, plan: ComputePlan) -> DecodeState:
    """Empties the rows `at` i32[P], in which NaN would outlive its sequence: times a weight of 0 it is NaN.

    Rows without a sequence are computed all the same, so their last token goes too.
    """
    cache = jax.tree.map(lambda x: x.at[at].set(0, mode="drop"), state.cache)
    rows = state.rows._replace(last=state.rows.last.at[at].set(0, mode="drop"))
    return placed(state._replace(rows=rows, cache=cache), plan)


@functools.partial(jax.jit, static_argnames=("backbone", "rows", "slots", "plan"))
def resize(state: DecodeState, *, backbone: Backbone, rows: int, slots: int, plan: ComputePlan) -> DecodeState:
    """The state with more rows or slots."""
    architecture, length, slot_offset = backbone.architecture, state.rows.length, state.rows.slot_offset

    def roomier(stored: Stored, layer: int) -> Stored:
        size = min(slots, architecture.layers[layer].window or slots)
        if size <= stored.shape[2]:
            return stored
        held = held_positions(length, size, slot_offset)
        return jax.tree.map(lambda x: in_positions(x, held, slot_offset), stored)

    def taller(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, max(rows - len(x), 0)), *[(0, 0)] * (x.ndim - 1)]) if x.ndim else x

    cache = KVCache(
        tuple(roomier(stored, layer) for layer, stored in enumerate(state.cache.keys)),
        tuple(roomier(stored, layer) for layer, stored in enumerate(state.cache.values)),
    )
    return placed(jax.tree.map(taller, state._replace(cache=cache)), plan)
