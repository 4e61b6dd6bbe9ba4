"""The program that decodes: up to `CHUNK` new tokens of every running row in one call.

Axes: B rows of a state, C tokens of a chunk, V vocabulary, n likely tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from keras_hub.models import Backbone

from gemma_keras.inference.decode_state import DecodeState, placed
from gemma_keras.inference.sampling import BLOCK, add_bias, next_and_greatest, unpack_bits
from gemma_keras.models.forward import Params, forward, layer_angles, logits, only_pieces
from gemma_keras.models.kv_cache import Context, KVCache
from gemma_keras.parallel.mesh import ALL, DATA
from gemma_keras.parallel.plan import ComputePlan

CHUNK = 32  # tokens of a row that a call of `decode` makes at most


class Chunk(NamedTuple):
    """What a call of `decode` gives to the host.

    `tokens` i32[B, C] (-1: none), `stopped` bool[B] by a stop token, `broken` bool[B] logits that are not finite, `clock` i32:
    steps so far.
    On request `log_probs` f32[B, C] of the tokens under the model itself, before any setting, and the most likely
    tokens, `top_ids` i32[B, C, n] and `top_log_probs` f32[B, C, n].
    """

    tokens: jax.Array
    stopped: jax.Array
    broken: jax.Array
    clock: jax.Array
    log_probs: jax.Array | None = None
    top_ids: jax.Array | None = None
    top_log_probs: jax.Array | None = None


class _DecodeLoop(NamedTuple):
    """What decoding carries from step to step."""

    index: jax.Array
    cache: KVCache
    last: jax.Array
    running: jax.Array
    counts: jax.Array
    chunk: Chunk
    every: jax.Array | None


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "alternatives"), donate_argnames="state")
def decode(
    params: Params,
    state: DecodeState,
    steps: jax.Array,
    allowed: jax.Array | None,
    *,
    backbone: Backbone,
    plan: ComputePlan,
    alternatives: int | None,
) -> tuple[DecodeState, Chunk, jax.Array | None]:
    """Up to `steps` i32 new tokens, `CHUNK` at most, for every running row; fewer once none is running.

    `allowed` u32[B, W] are the tokens that may come next, for a single step; None: all. `alternatives`: None, or
    how many likely tokens are reported besides the log-probability of each token. With both, f32[B, V] comes third: the
    log-probabilities of all tokens, for the host may overrule the one that was taken.
    """
    rows, vocabulary = state.rows, backbone.architecture.vocabulary_size
    sampling = rows.sampling.of_running(rows.running)
    each = jnp.arange(len(rows.last))
    mask = None if allowed is None else unpack_bits(allowed, vocabulary)
    all_angles = layer_angles(backbone.architecture, rows.length[:, None] + jnp.arange(CHUNK))

    def advance(loop: _DecodeLoop) -> _DecodeLoop:
        length, clock = rows.length + loop.index, state.clock + loop.index
        context = Context(length=length, cache=loop.cache, slot_offset=rows.slot_offset, slot=clock)
        angles = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, loop.index, 1, axis=1), all_angles)
        hidden, new = forward(
            backbone, params, loop.last[:, None], length[:, None], context=context, angles=angles, plan=plan
        )
        raw = _logits(backbone, params, hidden[:, 0], plan)
        scores = only_pieces(backbone.architecture, add_bias(raw, rows.bias_ids, rows.bias_values))
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        tallies = rows.tallies._replace(counts=loop.counts)
        token, greatest = next_and_greatest(scores, tallies, sampling, rows.step + loop.index)
        finite = jnp.isfinite(greatest)
        stop = loop.running & finite & rows.stops[each, token]
        taken = loop.running & finite & ~stop
        log_probs = None
        if alternatives is not None:
            log_probs = only_pieces(backbone.architecture, jax.nn.log_softmax(raw, axis=-1))
        chunk = _noted(loop, jnp.where(taken, token, -1), log_probs, token, alternatives)
        return _DecodeLoop(
            index=loop.index + 1,
            cache=loop.cache.append(new, clock),
            last=jnp.where(taken, token, loop.last),
            running=taken & (rows.step + loop.index + 1 < rows.limit),
            counts=loop.counts.at[each, token].add(taken.astype(jnp.int32)),
            chunk=chunk._replace(stopped=chunk.stopped | stop, broken=chunk.broken | (loop.running & ~finite)),
            every=None if loop.every is None else log_probs,
        )

    begin = _begin(state, alternatives, overruled=mask is not None)
    end = jax.lax.while_loop(lambda loop: (loop.index < steps) & loop.running.any(), advance, begin)
    rows = rows._replace(
        length=rows.length + end.index, last=end.last, step=rows.step + end.index, running=end.running,
        tallies=rows.tallies._replace(counts=end.counts),
    )  # fmt: skip
    clock = state.clock + end.index
    return placed(DecodeState(rows, end.cache, clock), plan), end.chunk._replace(clock=clock), end.every


def _logits(backbone: Backbone, params: Params, hidden: jax.Array, plan: ComputePlan) -> jax.Array:
    """Logits f32[B, V] of `hidden` [B, D].

    On a mesh each device scores all rows against its part of the table, which would else be brought together at every step
    for the rows of each. Sampling goes on with these parts where they hold whole blocks of tokens, which those of 262,208
    do not; else with whole rows.
    """
    vocabulary, devices = backbone.architecture.vocabulary_size, plan.mesh.size if plan.mesh is not None else 1
    whole_blocks = vocabulary % (BLOCK * devices) == 0
    if plan.mesh is None or vocabulary % devices or (whole_blocks and plan.data_devices == 1):
        return logits(backbone, params, hidden)
    raw = plan.constrain(logits(backbone, params, plan.constrain(hidden, None, None)), None, ALL)
    if whole_blocks:
        return raw
    # In two steps, for XLA knows no way from parts of the vocabulary to rows, and says so in a warning.
    return plan.constrain(plan.constrain(raw, None, None), None if len(raw) % plan.data_devices else DATA, None)


def _begin(state: DecodeState, alternatives: int | None, *, overruled: bool) -> _DecodeLoop:
    """Before the first step; `overruled`: the host may take another token."""
    size, vocabulary = state.rows.stops.shape
    asked, none = alternatives is not None, jnp.zeros(size, bool)
    chunk = Chunk(
        tokens=jnp.full((size, CHUNK), -1, jnp.int32), stopped=none, broken=none, clock=state.clock,
        log_probs=jnp.zeros((size, CHUNK), jnp.float32) if asked else None,
        top_ids=jnp.zeros((size, CHUNK, alternatives), jnp.int32) if alternatives else None,
        top_log_probs=jnp.zeros((size, CHUNK, alternatives), jnp.float32) if alternatives else None,
    )  # fmt: skip
    return _DecodeLoop(
        jnp.zeros((), jnp.int32), state.cache, state.rows.last, state.rows.running, state.rows.tallies.counts, chunk,
        jnp.zeros((size, vocabulary), jnp.float32) if asked and overruled else None,
    )  # fmt: skip


def _noted(
    loop: _DecodeLoop, shown: jax.Array, log_probs: jax.Array | None, token: jax.Array, alternatives: int | None
) -> Chunk:
    """The chunk with the tokens of this step."""
    chunk, index = loop.chunk, loop.index
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
