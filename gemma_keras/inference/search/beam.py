"""Beam search, numerically that of transformers (generation/utils.py, `_beam_search`, with early_stopping=False).

All beams of all prompts are rows of one batch. The prompt's keys and values are read only, one copy a beam; the tokens that
follow gather in a buffer, and only this buffer is put in order when beams branch.

Axes: P prompts, k beams of each, B = P·k rows, T tokens, C new tokens, V vocabulary, m candidates of a row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from keras_hub.models import Backbone

from gemma_keras.inference.requests import Request
from gemma_keras.inference.sampling import SamplingRows, Tallies, penalize
from gemma_keras.models.forward import Params, forward, logits, only_pieces
from gemma_keras.models.kv_cache import Context, KVCache, init_cache
from gemma_keras.parallel.plan import ComputePlan

IMPOSSIBLE = -1e9  # transformers' score of a beam that is not there


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """A finished answer, without its stop token; `score` is its log-probability over length ** length_penalty."""

    tokens: list[int]
    stopped: bool
    score: float


class _Search:
    """The bookkeeping of one prompt, on the host."""

    def __init__(self, request: Request):
        self.request, self.beams = request, request.sampling.num_beams
        self.tokens: list[list[int]] = [[] for _ in range(self.beams)]
        self.scores = np.array([0.0] + [IMPOSSIBLE] * (self.beams - 1), np.float32)
        self.finished: list[Beam] = []
        self.open = True

    def advance(self, values: np.ndarray, ids: np.ndarray) -> tuple[list[int], list[int]]:
        """From candidates [k, m] of each beam to the next beams: which beam each continues, and by which token."""
        totals = (values + self.scores[:, None]).astype(np.float32)
        best = np.argsort(-totals, axis=None, kind="stable")[: ids.shape[1]]
        new_length = len(self.tokens[0]) + 1
        at_limit = new_length >= self.request.sampling.max_new_tokens
        going: list[tuple[float, int, int]] = []
        for rank, place in enumerate(best):
            beam, column = divmod(int(place), ids.shape[1])
            token, score = int(ids[beam, column]), float(totals[beam, column])
            stop = token in self.request.stop_ids
            if (stop or at_limit) and rank < self.beams:
                tokens = self.tokens[beam] + ([] if stop else [token])
                self._finish(Beam(tokens, stop, score / new_length**self.request.sampling.length_penalty))
            if not stop and not at_limit and len(going) < self.beams:
                going.append((score, beam, token))
        if at_limit:
            self.open = False
            return [], []
        scores, parents, tokens = (list(column) for column in zip(*going, strict=True))
        self.tokens = [[*self.tokens[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        self.scores = np.array(scores, np.float32)
        self.open = self._can_improve(new_length)
        return parents, tokens

    def _finish(self, beam: Beam) -> None:
        self.finished = sorted([*self.finished, beam], key=lambda done: -done.score)[: self.beams]

    def _can_improve(self, length: int) -> bool:
        if len(self.finished) < self.beams:
            return True
        return bool(self.scores[0] / length**self.request.sampling.length_penalty > self.finished[-1].score)


def beam_search(
    backbone: Backbone, plan: ComputePlan, params: Params, cache: KVCache, requests: Sequence[Request]
) -> Iterator[dict[int, list[Beam] | None]]:
    """After each step the beams, best first, of the requests that are done, by their numbers; None: broken logits.

    Args:
        cache: row p·k of it, k being the greatest `num_beams`, holds all but the last token of the p-th prompt, and so do the
            k - 1 rows after it.
    """
    searches = [_Search(request) for request in requests]
    beams, rows = max(search.beams for search in searches), cache.rows
    most = max(request.sampling.max_new_tokens for request in requests)
    keep = max(max(2, 1 + len(set(request.stop_ids))) * request.sampling.num_beams for request in requests)
    keep = min(keep, backbone.architecture.pieces)
    dtype = backbone.token_embedding.compute_dtype
    recent = jax.jit(functools.partial(init_cache, backbone.architecture, rows, most, dtype, plan, ring=False))()
    length, last = np.zeros((2, rows), np.int32)
    prompt = np.zeros((rows, backbone.architecture.vocabulary_size), bool)
    filler = [requests[-1].sampling] * (rows - len(requests) * beams)
    sampling = SamplingRows.of([request.sampling for request in requests for _ in range(beams)] + filler)
    for number, request in enumerate(requests):
        own = slice(number * beams, (number + 1) * beams)
        length[own], last[own] = len(request.prompt) - 1, request.prompt[-1]
        prompt[own, list(request.prompt)] = True
    tallies = Tallies(jnp.asarray(prompt), jnp.zeros(prompt.shape, jnp.int32))
    order = np.arange(rows, dtype=np.int32)
    for step in range(most):
        recent, tallies, values, ids = _extend(
            params, cache, recent, tallies, sampling, length, np.int32(step), order, last, backbone=backbone, plan=plan,
            keep=keep,
        )  # fmt: skip
        values, ids = jax.device_get((values, ids))
        order, last = np.arange(rows, dtype=np.int32), last.copy()
        done: dict[int, list[Beam] | None] = {}
        for number, search in enumerate(searches):
            if not search.open:
                continue
            first = number * beams
            own = slice(first, first + search.beams)
            if not np.isfinite(values[own, 0]).all():
                search.open, done[number] = False, None
                continue
            count = max(2, 1 + len(set(search.request.stop_ids))) * search.beams
            parents, tokens = search.advance(values[own, :count], ids[own, :count])
            if parents:
                order[own], last[own] = first + np.array(parents), tokens
            if not search.open:
                done[number] = search.finished
        yield done
        if not any(search.open for search in searches):
            break


@functools.partial(jax.jit, static_argnames=("backbone", "plan", "keep"), donate_argnames=("recent", "tallies"))
def _extend(
    params: Params,
    cache: KVCache,
    recent: KVCache,
    tallies: Tallies,
    sampling: SamplingRows,
    length: jax.Array,
    step: jax.Array,
    order: jax.Array,
    last: jax.Array,
    *,
    backbone: Backbone,
    plan: ComputePlan,
    keep: int,
) -> tuple[KVCache, Tallies, jax.Array, jax.Array]:
    """Each row goes on from row `order` i32[B] with the token `last` i32[B]; the log-probabilities f32[B, m] and ids i32[B, m]
    of its likeliest next tokens, after the penalties."""
    recent = jax.tree.map(lambda x: x[order], recent)
    counts = tallies.counts[order]
    counts = counts.at[jnp.arange(len(last)), last].add((step > 0).astype(counts.dtype))
    tallies = tallies._replace(counts=counts)
    context = Context(length=length, cache=cache, recent=recent, step=step)
    hidden, new = forward(backbone, params, last[:, None], (length + step)[:, None], context=context, plan=plan)
    log_probs = only_pieces(backbone.architecture, jax.nn.log_softmax(logits(backbone, params, hidden[:, 0]), axis=-1))
    values, ids = jax.lax.top_k(penalize(log_probs, tallies, sampling), keep)
    return recent.append(new, step), tallies, values, ids
