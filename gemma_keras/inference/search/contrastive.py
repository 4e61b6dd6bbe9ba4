"""Contrastive search (arXiv 2202.06417): likely tokens that differ from what came before.

At each step the k likeliest tokens are tried: they go through the model side by side, all at the same position and without
seeing each other, so that the cache is neither copied nor written. Token v is taken for the greatest

    (1 - alpha) p(v) - alpha max_j cos(h_v, h_j)

with h the hidden states after the final norm, and j over all tokens of the prompt and the answer. The state that a token was
judged by then gives the probabilities of the next step.

Axes: P prompts, T prompt tokens, S slots, k candidates, D model dim, V vocabulary, C new tokens.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.inference.decode import Chunk
from gemma_keras.inference.requests import Request
from gemma_keras.inference.sampling import SamplingRows, Tallies, penalize
from gemma_keras.models.forward import Params, forward, logits, only_pieces
from gemma_keras.models.kv_cache import Context, KVCache, init_cache
from gemma_keras.parallel.plan import ComputePlan

STEPS = 16  # new tokens of a row between two looks of the host


class _Prompts(NamedTuple):
    """What does not change: tokens `count` i32[P] of the prompts, in `cache`; `limit` i32[P] new tokens; `alpha` f32[P] and
    `k` i32[P] of the requests; `prompt` and `stops` bool[P, V]; and the settings of penalties."""

    count: jax.Array
    limit: jax.Array
    alpha: jax.Array
    k: jax.Array
    prompt: jax.Array
    stops: jax.Array
    sampling: SamplingRows
    cache: KVCache | None = None


class _ContrastiveLoop(NamedTuple):
    """`states` f32[P, S + C, D]: hidden states of length 1, by position; `scores` f32[P, V]: logits of the next token;
    `found`: the whole answers so far."""

    index: jax.Array
    recent: KVCache
    states: jax.Array
    scores: jax.Array
    counts: jax.Array
    running: jax.Array
    found: Chunk


def candidate_scores(
    probabilities: jax.Array, candidates: jax.Array, earlier: jax.Array, is_earlier: jax.Array, alpha: jax.Array
) -> jax.Array:
    """Scores f32[P, k] of candidates with `probabilities` f32[P, k] and hidden states `candidates` [P, k, D], against the
    states `earlier` [P, S, D] where `is_earlier` bool[P, S]; `alpha` f32[P]."""
    likeness = jnp.einsum("pkd,psd->pks", unit(candidates), unit(earlier))
    most = jnp.max(jnp.where(is_earlier[:, None], likeness, -jnp.inf), axis=-1)
    return (1 - alpha)[:, None] * probabilities - alpha[:, None] * most


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def contrastive_search(
    backbone: Backbone, plan: ComputePlan, params: Params, requests: Sequence[Request], slots: int, rows: int
) -> Iterator[Chunk]:
    """What is found of the answers of `requests`, padded to `rows`, after every `STEPS` tokens; the last is the whole.

    `slots` is the length that their prompts are padded to.
    """
    vocabulary = backbone.architecture.vocabulary_size
    tokens, count = np.zeros((rows, slots), np.int32), np.ones(rows, np.int32)
    limit, k = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    alpha = np.zeros(rows, np.float32)
    prompt, stops = np.zeros((2, rows, vocabulary), bool)
    for row, request in enumerate(requests):
        tokens[row, : len(request.prompt)] = request.prompt
        count[row], limit[row] = len(request.prompt), request.sampling.max_new_tokens
        alpha[row], k[row] = request.sampling.penalty_alpha, candidates_of(request, backbone.architecture.pieces)
        prompt[row, list(request.prompt)] = True
        stops[row, list(request.stop_ids)] = True
    configs = [request.sampling for request in requests]
    sampling = SamplingRows.of(configs + [configs[-1]] * (rows - len(configs)))
    prompts: Any = _Prompts(count, limit, alpha, k, prompt, stops, sampling)
    cache, loop = _begin(params, tokens, prompts, backbone=backbone, plan=plan, new=int(limit.max()))
    prompts = prompts._replace(cache=cache)
    running = True
    while running:
        loop = _advance(params, prompts, loop, backbone=backbone, plan=plan, most=int(k.max()))
        found, running = jax.device_get((loop.found, loop.running.any()))
        yield found


def is_over(request: Request, found: Chunk, row: int) -> bool:
    """Whether nothing more comes of a request, whose answer is in `row`."""
    whole = np.sum(found.tokens[row] >= 0) >= request.sampling.max_new_tokens
    return bool(whole or found.stopped[row] or found.broken[row])


def candidates_of(request: Request, pieces: int) -> int:
    """The k of a request to a model of so many tokens; 4 where it asks for all of them."""
    return min(request.sampling.top_k or 4, pieces)


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "new"))
def _begin(
    params: Params, tokens: jax.Array, prompts: _Prompts, *, backbone: Backbone, plan: ComputePlan, new: int
) -> tuple[KVCache, _ContrastiveLoop]:
    """The prompts `tokens` i32[P, S] read, and what the first step needs; `new` is the longest answer."""
    rows, slots = tokens.shape
    architecture, dtype, count = backbone.architecture, backbone.token_embedding.compute_dtype, prompts.count
    places = jnp.arange(slots)
    positions = jnp.where(places < count[:, None], places, -1)
    start = jnp.zeros_like(count)
    hidden, own = forward(backbone, params, tokens, positions, context=Context(length=start), plan=plan)
    cache = init_cache(architecture, rows, slots, dtype, plan, ring=False).write(own, start, count)
    none = jnp.zeros(rows, bool)
    return cache, _ContrastiveLoop(
        index=jnp.zeros((), jnp.int32),
        recent=init_cache(architecture, rows, new, dtype, plan, ring=False),
        states=jnp.pad(unit(hidden), ((0, 0), (0, new), (0, 0))),
        scores=logits(backbone, params, hidden[jnp.arange(rows), count - 1]),
        counts=jnp.zeros(prompts.prompt.shape, jnp.int32),
        running=prompts.limit > 0,
        found=Chunk(jnp.full((rows, new), -1, jnp.int32), none, none, clock=jnp.zeros((), jnp.int32)),
    )


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "most"), donate_argnames="loop")
def _advance(
    params: Params, prompts: _Prompts, loop: _ContrastiveLoop, *, backbone: Backbone, plan: ComputePlan, most: int
) -> _ContrastiveLoop:
    """Up to `STEPS` steps, until no row is running; `most` is the greatest k."""
    count, cache = prompts.count, prompts.cache
    slots = loop.states.shape[1] - loop.found.tokens.shape[1]
    each, places = jnp.arange(len(count)), jnp.arange(loop.states.shape[1])

    def step(state: _ContrastiveLoop) -> _ContrastiveLoop:
        scores = penalize(state.scores, Tallies(prompts.prompt, state.counts), prompts.sampling)
        probabilities = only_pieces(backbone.architecture, jax.nn.softmax(scores, axis=-1))
        probabilities, ids = jax.lax.top_k(probabilities, most)
        context = Context(length=count, cache=cache, recent=state.recent, step=state.index, alone=True)
        position = jnp.broadcast_to((count + state.index)[:, None], ids.shape)
        hidden, new = forward(backbone, params, ids.astype(jnp.int32), position, context=context, plan=plan)
        is_earlier = (places < count[:, None]) | ((places >= slots) & (places < slots + state.index))
        judged = candidate_scores(probabilities, hidden, state.states, is_earlier, prompts.alpha)
        chosen = jnp.argmax(jnp.where(jnp.arange(most) < prompts.k[:, None], judged, -jnp.inf), axis=-1)
        token = ids[each, chosen].astype(jnp.int32)
        kept = tuple(tuple(x[each, :, chosen][:, :, None] for x in pair) for pair in new)
        own = hidden[each, chosen]
        finite = jnp.isfinite(state.scores).all(axis=-1)
        stop = state.running & finite & prompts.stops[each, token]
        taken = state.running & finite & ~stop
        found = state.found
        return _ContrastiveLoop(
            index=state.index + 1,
            recent=state.recent.append(kept, state.index),
            states=jax.lax.dynamic_update_slice_in_dim(state.states, unit(own)[:, None], slots + state.index, axis=1),
            scores=logits(backbone, params, own),
            counts=state.counts.at[each, token].add(taken.astype(jnp.int32)),
            running=taken & (state.index + 1 < prompts.limit),
            found=Chunk(
                found.tokens.at[:, state.index].set(jnp.where(taken, token, -1)),
                found.stopped | stop,
                found.broken | (state.running & ~finite),
                clock=state.index + 1,
            ),
        )

    end = loop.index + STEPS
    return jax.lax.while_loop(lambda state: (state.index < end) & state.running.any(), step, loop)
