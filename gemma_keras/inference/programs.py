"""The compiled programs of generation: prompts into the cache, a chunk of new tokens, rows that come and go.

All of them take and give back a `Lane`: B sequences that decode side by side, each at its own length, with settings of its own.
The lane has a clock, which counts its steps: a step writes slot `clock` mod S of every row, and the row's turn (kv_cache.py)
says which position that is.

    clock 5    p p p p p n . . .    turn 0, length 5: the next token is at position 5
               . . . p p n . . .    turn 3, length 2: the next token is at position 2

A prompt's last token is the input of the first step, so that logits are computed at one place only.

Axes: B rows of a lane, P rows at work, T prompt tokens, S slots, C tokens of a chunk, V vocabulary, n entries of a list.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras_hub.models import GemmaBackbone

from gemma_keras.inference.sampling import SamplingRows, Tallies, add_bias, next_and_greatest, unpack_bits
from gemma_keras.models.compute_plan import DATA, ComputePlan
from gemma_keras.models.forward import Params, forward, layer_angles, logits
from gemma_keras.models.kv_cache import (
    Context,
    Fresh,
    KVCache,
    Stored,
    cache_sharding,
    held_positions,
    init_cache,
    turned,
)

CHUNK = 32  # tokens of a row that a call of `decode` makes at most


class Rows(NamedTuple):
    """What a row is told, and how far it is; an entry [B, ...] a row.

    `length` i32 tokens in the cache, in slots that `turn` i32 tells; `last` i32 the token that goes in next; `step` and `limit`
    i32 new tokens so far and at most; `running` bool; `stops` bool[B, V] which tokens end it; `bias_ids` i32[B, n] and
    `bias_values` f32[B, n].
    """

    length: jax.Array
    turn: jax.Array
    last: jax.Array
    step: jax.Array
    limit: jax.Array
    running: jax.Array
    tallies: Tallies
    stops: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    sampling: SamplingRows


class Lane(NamedTuple):
    """B sequences under way; `clock` i32: steps so far. For each row, length + turn equals it mod S."""

    rows: Rows
    cache: KVCache
    clock: jax.Array


class Chunk(NamedTuple):
    """What a call of `decode` gives to the host.

    `tokens` i32[B, C] (-1: none), `stopped` bool[B] by a stop token, `broken` bool[B] logits that are not finite, `clock` i32
    of the lane.
    On request `log_probs` f32[B, C] of the tokens under the model itself, before any setting, and the most likely
    tokens, `top_ids` i32[B, C, n] and `top_log_probs` f32[B, C, n].
    """

    tokens: jax.Array
    stopped: jax.Array
    broken: jax.Array
    clock: jax.Array
    log_probs: jax.Array | None
    top_ids: jax.Array | None
    top_log_probs: jax.Array | None


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "rows", "slots", "biases", "cache_dtype"))
def empty_lane(
    backbone: GemmaBackbone, plan: ComputePlan, rows: int, slots: int, biases: int, cache_dtype: str
) -> Lane:
    """A lane without sequences."""
    architecture, vocabulary = backbone.architecture, backbone.architecture.vocabulary_size
    dtype = backbone.token_embedding.compute_dtype
    number, flags = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, vocabulary), bool)
    share = jnp.zeros(rows, jnp.float32)
    values = Rows(
        length=number, turn=number, last=number, step=number, limit=number, running=jnp.zeros(rows, bool),
        tallies=Tallies(flags, jnp.zeros((rows, vocabulary), jnp.int32)), stops=flags,
        bias_ids=jnp.zeros((rows, biases), jnp.int32), bias_values=jnp.zeros((rows, biases), jnp.float32),
        sampling=SamplingRows(
            temperature=share, top_k=number, top_p=share + 1, min_p=share, repetition_penalty=share + 1,
            presence_penalty=share, frequency_penalty=share, seed=number.astype(jnp.uint32),
        ),
    )  # fmt: skip
    cache = init_cache(architecture, rows, slots, dtype if cache_dtype == "auto" else cache_dtype, plan)
    return placed(Lane(values, cache, jnp.zeros((), jnp.int32)), plan)


def lane_shardings(lane: Lane, mesh: Mesh) -> Lane:
    """Where each array of a lane lies: rows over "data", heads over "model", where they divide."""

    def by_row(x: jax.Array) -> NamedSharding:
        divided = x.ndim and x.shape[0] % mesh.shape[DATA] == 0
        return NamedSharding(mesh, PartitionSpec(DATA if divided else None))

    cache = jax.tree.map(lambda x: cache_sharding(mesh, x.shape), lane.cache)
    return Lane(jax.tree.map(by_row, lane.rows), cache, NamedSharding(mesh, PartitionSpec()))


def placed(lane: Lane, plan: ComputePlan) -> Lane:
    """Every array where `empty_lane` put it, so that no program meets a placement that it was not compiled for."""
    return lane if plan.mesh is None else jax.lax.with_sharding_constraint(lane, lane_shardings(lane, plan.mesh))


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "prefix"), donate_argnames="lane")
def prefill(
    params: Params,
    lane: Lane,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    at: jax.Array,
    turn: jax.Array,
    *,
    backbone: GemmaBackbone,
    plan: ComputePlan,
    prefix: int,
) -> Lane:
    """Puts the first `count` i32[P] of `tokens` i32[P, T] into the rows `at` i32[P], at positions `start` i32[P] and after.

    Rows beyond the lane are padding. `turn` i32[P] is what the rows will have. `prefix` says up to where there are earlier
    tokens of these rows (0: nowhere).
    """
    places = jnp.arange(tokens.shape[1])
    positions = jnp.where(places < count[:, None], start[:, None] + places, -1)
    earlier = lane.cache.take(at, prefix, turn) if prefix else None
    _, fresh = forward(backbone, params, tokens, positions, context=Context(length=start, cache=earlier), plan=plan)
    return placed(lane._replace(cache=lane.cache.write(fresh, start, count, at, turn)), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="lane")
def admit(lane: Lane, at: jax.Array, rows: Rows, *, plan: ComputePlan) -> Lane:
    """Gives the rows `at` i32[P] of a lane the values `rows` [P, ...]; those beyond the lane are left out."""
    values = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), lane.rows, rows)
    return placed(lane._replace(rows=values), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="lane")
def copy_rows(lane: Lane, source: jax.Array, to: jax.Array, *, plan: ComputePlan) -> Lane:
    """Copies the cache of the rows `source` i32[P] to the rows `to` i32[P]; those beyond the lane are left out."""
    cache = jax.tree.map(lambda x: x.at[to].set(x[source], mode="drop"), lane.cache)
    return placed(lane._replace(cache=cache), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="lane")
def release(lane: Lane, at: jax.Array, *, plan: ComputePlan) -> Lane:
    """Ends the rows `at` i32[P]; those beyond the lane are left out."""
    running = lane.rows.running.at[at].set(False, mode="drop")
    return placed(lane._replace(rows=lane.rows._replace(running=running)), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="lane")
def overrule(lane: Lane, at: jax.Array, taken: jax.Array, instead: jax.Array, *, plan: ComputePlan) -> Lane:
    """Puts the token `instead` into the place of the newest one, `taken`, of row `at`; all i32 scalars."""
    rows = lane.rows
    counts = rows.tallies.counts.at[at, taken].add(-1).at[at, instead].add(1)
    rows = rows._replace(last=rows.last.at[at].set(instead), tallies=rows.tallies._replace(counts=counts))
    return placed(lane._replace(rows=rows), plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="lane")
def erase(lane: Lane, at: jax.Array, *, plan: ComputePlan) -> Lane:
    """Empties the rows `at` i32[P], in which NaN would outlive its sequence: times a weight of 0 it is NaN.

    Rows without a sequence are computed all the same, so their last token goes too.
    """
    cache = jax.tree.map(lambda x: x.at[at].set(0, mode="drop"), lane.cache)
    rows = lane.rows._replace(last=lane.rows.last.at[at].set(0, mode="drop"))
    return placed(lane._replace(rows=rows, cache=cache), plan)


@functools.partial(jax.jit, static_argnames=("backbone", "rows", "slots", "plan"))
def resize(lane: Lane, *, backbone: GemmaBackbone, rows: int, slots: int, plan: ComputePlan) -> Lane:
    """The lane with more rows or slots."""
    architecture, length, turn = backbone.architecture, lane.rows.length, lane.rows.turn

    def roomier(stored: Stored, layer: int) -> Stored:
        size = min(slots, architecture.layers[layer].window or slots)
        if size <= stored.shape[2]:
            return stored
        held = held_positions(length, size, turn)
        return jax.tree.map(lambda x: turned(x, held, turn), stored)

    def taller(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, max(rows - len(x), 0)), *[(0, 0)] * (x.ndim - 1)]) if x.ndim else x

    cache = KVCache(
        tuple(roomier(stored, layer) for layer, stored in enumerate(lane.cache.keys)),
        tuple(roomier(stored, layer) for layer, stored in enumerate(lane.cache.values)),
    )
    return placed(jax.tree.map(taller, lane._replace(cache=cache)), plan)


def layers(cache: KVCache) -> Fresh:
    """A pair of keys and values a layer."""
    return tuple(zip(cache.keys, cache.values, strict=True))


class _Loop(NamedTuple):
    """What decoding carries from step to step."""

    index: jax.Array
    cache: KVCache
    last: jax.Array
    running: jax.Array
    counts: jax.Array
    chunk: Chunk
    every: jax.Array | None


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "alternatives"), donate_argnames="lane")
def decode(
    params: Params,
    lane: Lane,
    steps: jax.Array,
    allowed: jax.Array | None,
    *,
    backbone: GemmaBackbone,
    plan: ComputePlan,
    alternatives: int | None,
) -> tuple[Lane, Chunk, jax.Array | None]:
    """Up to `steps` i32 new tokens, `CHUNK` at most, for every running row; fewer once none is running.

    `allowed` u32[B, V/32] are the tokens that may come next, for a single step; None: all. `alternatives`: None, or
    how many likely tokens are reported besides the log-probability of each token. With both, f32[B, V] comes third: the
    log-probabilities of all tokens, for the host may overrule the one that was taken.
    """
    rows, vocabulary = lane.rows, backbone.architecture.vocabulary_size
    sampling = rows.sampling.of_running(rows.running)
    each = jnp.arange(len(rows.last))
    mask = None if allowed is None else unpack_bits(allowed, vocabulary)
    all_angles = layer_angles(backbone.architecture, rows.length[:, None] + jnp.arange(CHUNK))

    def advance(state: _Loop) -> _Loop:
        length, clock = rows.length + state.index, lane.clock + state.index
        context = Context(length=length, cache=state.cache, turn=rows.turn, slot=clock)
        angles = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, state.index, 1, axis=1), all_angles)
        hidden, fresh = forward(
            backbone, params, state.last[:, None], length[:, None], context=context, angles=angles, plan=plan
        )
        raw = logits(backbone, params, hidden[:, 0])
        scores = add_bias(raw, rows.bias_ids, rows.bias_values)
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        tallies = rows.tallies._replace(counts=state.counts)
        token, greatest = next_and_greatest(scores, tallies, sampling, rows.step + state.index)
        finite = jnp.isfinite(greatest)
        stop = state.running & finite & rows.stops[each, token]
        taken = state.running & finite & ~stop
        log_probs = None if alternatives is None else jax.nn.log_softmax(raw, axis=-1)
        chunk = _noted(state, jnp.where(taken, token, -1), log_probs, token, alternatives)
        return _Loop(
            index=state.index + 1,
            cache=state.cache.append(fresh, clock),
            last=jnp.where(taken, token, state.last),
            running=taken & (rows.step + state.index + 1 < rows.limit),
            counts=state.counts.at[each, token].add(taken.astype(jnp.int32)),
            chunk=chunk._replace(stopped=chunk.stopped | stop, broken=chunk.broken | (state.running & ~finite)),
            every=None if state.every is None else log_probs,
        )

    def unfinished(state: _Loop) -> jax.Array:
        return (state.index < steps) & state.running.any()

    begin = _Loop(
        jnp.zeros((), jnp.int32), lane.cache, rows.last, rows.running, rows.tallies.counts,
        _empty_chunk(len(each), alternatives, lane.clock),
        None if mask is None or alternatives is None else jnp.zeros((len(each), vocabulary), jnp.float32),
    )  # fmt: skip
    end = jax.lax.while_loop(unfinished, advance, begin)
    rows = rows._replace(
        length=rows.length + end.index, last=end.last, step=rows.step + end.index, running=end.running,
        tallies=rows.tallies._replace(counts=end.counts),
    )  # fmt: skip
    clock = lane.clock + end.index
    return placed(Lane(rows, end.cache, clock), plan), end.chunk._replace(clock=clock), end.every


def _empty_chunk(rows: int, alternatives: int | None, clock: jax.Array) -> Chunk:
    none = jnp.zeros(rows, bool)
    asked = alternatives is not None
    return Chunk(
        tokens=jnp.full((rows, CHUNK), -1, jnp.int32), stopped=none, broken=none, clock=clock,
        log_probs=jnp.zeros((rows, CHUNK), jnp.float32) if asked else None,
        top_ids=jnp.zeros((rows, CHUNK, alternatives), jnp.int32) if alternatives else None,
        top_log_probs=jnp.zeros((rows, CHUNK, alternatives), jnp.float32) if alternatives else None,
    )  # fmt: skip


def _noted(
    state: _Loop, shown: jax.Array, log_probs: jax.Array | None, token: jax.Array, alternatives: int | None
) -> Chunk:
    """The chunk with the tokens of this step."""
    chunk, index = state.chunk, state.index
    chunk = chunk._replace(tokens=chunk.tokens.at[:, index].set(shown))
    if chunk.log_probs is None or log_probs is None:
        return chunk
    own = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    chunk = chunk._replace(log_probs=chunk.log_probs.at[:, index].set(own))
    if not alternatives or chunk.top_ids is None or chunk.top_log_probs is None:
        return chunk
    values, ids = jax.lax.top_k(log_probs, alternatives)
    return chunk._replace(
        top_ids=chunk.top_ids.at[:, index].set(ids), top_log_probs=chunk.top_log_probs.at[:, index].set(values)
    )
